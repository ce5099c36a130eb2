//! What each figure of the benchmark may be, and what it was when somebody last looked: `tests/bench/budget.toml`.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::{bench::Part, machine::Vendor};

/// The file itself.
pub const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../bench/budget.toml");

/// Growth that is not noticed, in percent of the recorded figure.
const TOLERANCE: u64 = 2;
/// The same in instructions: where the compiler puts what in the program that measures.
const SLACK: u64 = 2;

/// A number for each vendor, where there is one.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerVendor {
    amd: Option<u64>,
    intel: Option<u64>,
}

impl PerVendor {
    #[must_use]
    pub const fn of(self, vendor: Vendor) -> Option<u64> {
        match vendor {
            Vendor::Amd => self.amd,
            Vendor::Intel => self.intel,
        }
    }

    const fn set(&mut self, vendor: Vendor, value: u64) {
        match vendor {
            Vendor::Amd => self.amd = Some(value),
            Vendor::Intel => self.intel = Some(value),
        }
    }
}

/// What is known about one figure.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// What it is called in a table.
    pub title: String,
    /// What it should be at most.
    #[serde(default)]
    pub budget: PerVendor,
    /// What it was.
    #[serde(default)]
    pub recorded: PerVendor,
    /// What the same takes without a hypervisor.
    #[serde(default)]
    pub native: PerVendor,
    /// What the peers take for the same.
    #[serde(default)]
    pub kvm: PerVendor,
    #[serde(default)]
    pub xen: PerVendor,
    /// Where the instructions go if it is above its budget.
    #[serde(default)]
    pub why: String,
}

/// Numbers of a figure that are measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Column {
    Recorded,
    Native,
    Kvm,
}

impl Column {
    const ALL: [Self; 3] = [Self::Recorded, Self::Native, Self::Kvm];

    const fn key(self) -> &'static str {
        match self {
            Self::Recorded => "recorded",
            Self::Native => "native",
            Self::Kvm => "kvm",
        }
    }

    const fn of(self, figure: &mut Figure) -> &mut PerVendor {
        match self {
            Self::Recorded => &mut figure.recorded,
            Self::Native => &mut figure.native,
            Self::Kvm => &mut figure.kvm,
        }
    }

    /// Its line in the file, with the end of line; nothing, if there is no number.
    fn line(self, figure: &Figure) -> String {
        let numbers = *self.of(&mut figure.clone());
        let vendors = [("amd", Vendor::Amd), ("intel", Vendor::Intel)];
        let known = vendors.iter().filter_map(|(key, vendor)| Some(format!("{key} = {}", numbers.of(*vendor)?)));
        let known: Vec<_> = known.collect();
        if known.is_empty() { String::new() } else { format!("{} = {{ {} }}\n", self.key(), known.join(", ")) }
    }
}

/// The whole file.
#[derive(Clone, Default, Debug)]
pub struct Budget {
    text: String,
    figures: BTreeMap<String, Figure>,
}

impl Budget {
    /// Reads [`PATH`].
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))?;
        Self::parse(text).with_context(|| format!("in {PATH}"))
    }

    fn parse(text: String) -> Result<Self> {
        let figures = toml::from_str(&text)?;
        Ok(Self { text, figures })
    }

    /// The figure of this name, if it is known.
    #[must_use]
    pub fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.get(name)
    }

    /// All figures, in the order of the file.
    pub fn figures(&self) -> impl Iterator<Item = (&str, &Figure)> {
        self.text.lines().filter_map(|line| Some((section(line)?, self.figures.get(section(line)?)?)))
    }

    /// What is wrong with measured values, each a sentence. `values` are all that there are for this vendor in this part.
    #[must_use]
    pub fn check(&self, vendor: Vendor, part: Part, values: &[(String, u64)]) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, value) in values {
            let known = self.figures.get(name).and_then(|f| Some((f, f.recorded.of(vendor)?)));
            let Some((figure, recorded)) = known else {
                wrong.push(format!("{name} is {value}, and no such figure is recorded"));
                continue;
            };
            if value * 100 > recorded * (100 + TOLERANCE) && *value > recorded + SLACK {
                wrong.push(format!("{name} is {value}, more than {TOLERANCE} % above the recorded {recorded}"));
            }
            match figure.budget.of(vendor) {
                Some(budget) if recorded <= budget && *value > budget => {
                    wrong.push(format!("{name} is {value}, above its budget of {budget}"));
                }
                Some(budget) if recorded > budget && figure.why.is_empty() => {
                    wrong.push(format!("{name} is recorded as {recorded}, above its budget of {budget}, and nothing says why"));
                }
                _ => {}
            }
        }
        for (name, _) in self.figures.iter().filter(|(_, f)| f.recorded.of(vendor).is_some()) {
            if Part::of(name) == part && !values.iter().any(|(measured, _)| measured == name) {
                wrong.push(format!("{name} was not measured"));
            }
        }
        wrong
    }

    /// Takes `values` for those of a column. All else in the file stays as it is; figures that it does not know go to its end.
    #[must_use]
    pub fn record(&self, column: Column, vendor: Vendor, values: &[(String, u64)]) -> Self {
        let mut figures = self.figures.clone();
        for (name, value) in values {
            let figure = figures.entry(name.clone()).or_insert_with(|| Figure { title: name.clone(), ..Figure::default() });
            column.of(figure).set(vendor, *value);
        }
        let lines = |figure: &Figure| Column::ALL.map(|column| column.line(figure)).concat();
        let is_one =
            |line: &str| Column::ALL.iter().any(|column| line.strip_prefix(column.key()).is_some_and(|l| l.starts_with(" = {")));
        let mut text = String::new();
        let mut current = None;
        for line in self.text.lines() {
            if let Some(name) = section(line) {
                current = figures.get(name);
            }
            match current {
                Some(figure) if line.starts_with("recorded = ") => text.push_str(&lines(figure)),
                Some(_) if is_one(line) => {}
                _ => {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
        for (name, figure) in figures.iter().filter(|(name, _)| !self.figures.contains_key(*name)) {
            let _ = write!(text, "\n[{name}]\ntitle = \"{}\"\n{}", figure.title, lines(figure));
        }
        Self { text, figures }
    }

    /// Writes [`PATH`].
    pub fn write(&self) -> Result<()> {
        fs::write(Path::new(PATH), &self.text).with_context(|| format!("cannot write {PATH}"))
    }
}

/// The name in the line that starts a figure.
fn section(line: &str) -> Option<&str> {
    line.strip_prefix('[')?.strip_suffix(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# A comment.\n\n[b]\ntitle = \"B\"\nbudget = { amd = 150 } # another\nrecorded = { amd = 100, intel = 10 }\n\n\
                        [a]\ntitle = \"A\"\nbudget = { amd = 3, intel = 3 }\nrecorded = { amd = 200 }\nwhy = \"It must.\"\n";

    fn budget() -> Budget {
        Budget::parse(TEXT.to_owned()).unwrap()
    }

    fn amd(a: u64, b: u64) -> Vec<String> {
        budget().check(Vendor::Amd, Part::Operations, &[("a".into(), a), ("b".into(), b)])
    }

    #[test]
    fn growth_is_an_error_from_two_percent_on() {
        for (a, b, wrong) in [(200, 100, 0), (204, 102, 0), (1, 1, 0), (205, 102, 1), (204, 103, 1), (300, 300, 3)] {
            assert_eq!(amd(a, b).len(), wrong, "{a} {b}: {:?}", amd(a, b));
        }
        // Two percent of little is nothing.
        let check = |b| budget().check(Vendor::Intel, Part::Operations, &[("b".into(), b)]).len();
        assert_eq!([check(10), check(12), check(13)], [0, 0, 1]);
    }

    #[test]
    fn a_figure_within_its_budget_must_stay_there() {
        let near = Budget::parse(TEXT.replace("amd = 100", "amd = 149")).unwrap();
        let check = |b| near.check(Vendor::Amd, Part::Operations, &[("a".into(), 200), ("b".into(), b)]);
        assert!(check(150).is_empty());
        assert_eq!(check(151), ["b is 151, above its budget of 150"]);
    }

    #[test]
    fn what_is_above_its_budget_needs_a_reason() {
        let silent = Budget::parse(TEXT.replace("why = \"It must.\"\n", "")).unwrap();
        let wrong = silent.check(Vendor::Amd, Part::Operations, &[("a".into(), 200), ("b".into(), 100)]);
        assert_eq!(wrong, ["a is recorded as 200, above its budget of 3, and nothing says why"]);
    }

    #[test]
    fn each_figure_is_measured_and_recorded() {
        let wrong = budget().check(Vendor::Intel, Part::Operations, &[("a".into(), 1), ("c".into(), 1)]);
        assert_eq!(
            wrong,
            ["a is 1, and no such figure is recorded", "c is 1, and no such figure is recorded", "b was not measured"]
        );
    }

    #[test]
    fn recording_changes_nothing_else() {
        let new = budget().record(Column::Recorded, Vendor::Amd, &[("a".into(), 7), ("c".into(), 9)]);
        let wanted = TEXT.replace("{ amd = 200 }", "{ amd = 7 }") + "\n[c]\ntitle = \"c\"\nrecorded = { amd = 9 }\n";
        assert_eq!(new.text, wanted);
        let both = new.record(Column::Recorded, Vendor::Intel, &[("c".into(), 8)]);
        assert!(both.text.ends_with("recorded = { amd = 9, intel = 8 }\n"));
        // The line of another column stands behind it, and once.
        let peers =
            both.record(Column::Kvm, Vendor::Amd, &[("b".into(), 5)]).record(Column::Kvm, Vendor::Amd, &[("b".into(), 6)]);
        assert!(peers.text.contains("recorded = { amd = 100, intel = 10 }\nkvm = { amd = 6 }\n\n[a]"));
        assert_eq!(both.figures().map(|(name, _)| name).collect::<Vec<_>>(), ["b", "a", "c"]);
    }

    #[test]
    fn the_file_is_good() {
        let budget = Budget::read().unwrap();
        assert_eq!(budget.figures().count(), budget.figures.len(), "each figure starts with a line of its own");
        // Also that a `recorded` stands in a line that recording finds.
        let measured = [("cpuid".to_owned(), 1)];
        assert_eq!(
            budget.record(Column::Recorded, Vendor::Amd, &measured).figure("cpuid").unwrap().recorded.of(Vendor::Amd),
            Some(1)
        );
    }
}
