//! `cargo xtask bench`: what VM exits and the like cost in host instructions, beside the budget and what the peers take.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use runner::{bench, budget::Budget, machine::Vendor, suite};
use serde_json::{Map, Value, json};

use crate::{
    progress::{Spinner, say},
    run::VendorArgument,
    test,
    tools::{self, Consent},
    trace,
    workspace::Workspace,
};

#[derive(Args, Clone, Debug, Default)]
pub struct BenchArguments {
    /// Only this vendor (AMD-V on QEMU TCG, VT-x on Bochs)
    #[arg(long, value_enum)]
    vendor: Option<VendorArgument>,
    /// Only figures whose name contains this
    #[arg(long, value_name = "STRING", default_value = "")]
    filter: String,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Take the figures for the recorded ones, in tests/bench/budget.toml
    #[arg(long)]
    record: bool,
    /// Write the instructions of one operation, with their functions and lines, instead: its name in tests/bench/budget.toml
    #[arg(long, value_name = "NAME", conflicts_with_all = ["filter", "json", "record"])]
    trace: Option<String>,
}

pub fn run(workspace: &Workspace, arguments: &BenchArguments, consent: Consent) -> Result<()> {
    // It becomes a word of the guest's command line, within a string.
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let named = arguments.trace.as_deref().unwrap_or(&arguments.filter);
    ensure!(named.chars().all(plain), "names of figures have only letters, digits and hyphens");
    let vendors = match arguments.vendor {
        Some(vendor) => vec![Vendor::from(vendor)],
        None => vec![Vendor::Amd, Vendor::Intel],
    };
    if let Some(name) = &arguments.trace {
        return trace::run(workspace, name, &vendors, consent);
    }
    let emulators: Vec<_> = vendors.iter().map(|v| if *v == Vendor::Amd { tools::QEMU } else { tools::BOCHS }).collect();
    tools::need(&[&[tools::IMAGE], emulators.as_slice()].concat(), consent)?;
    let work = suite::work_folder(&workspace.cache)?;
    let assets = test::assets(workspace, true, None, work.path())?;
    let mut budget = Budget::read()?;
    let mut document = Map::new();
    for vendor in vendors {
        let accel = bench::platform(vendor).spec().accel;
        let spinner = Spinner::start(&format!("measuring {vendor} on {accel}"));
        let values = bench::measure(&assets, vendor, &arguments.filter)?;
        drop(spinner);
        say(format_args!("\n{vendor} on {accel}: median host instructions of a round trip, seen by the guest"));
        say(table(vendor, &values, &budget).trim_end());
        let figures: Map<_, _> = values.iter().map(|(name, value)| (name.clone(), Value::from(*value))).collect();
        document.insert(vendor.to_string(), json!({ "emulator": accel.to_string(), "figures": figures }));
        if arguments.record {
            budget = budget.record(vendor, &values);
        }
    }
    if arguments.record {
        budget.write()?;
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&Value::Object(document))? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The values that are known to the budget's file in its order, then the others.
fn table(vendor: Vendor, values: &[(String, u64)], budget: &Budget) -> String {
    let mut lines = vec![Line::head()];
    for (name, figure) in budget.figures() {
        if let Some((_, value)) = values.iter().find(|(measured, _)| measured == name) {
            let above = figure.budget.of(vendor).is_some_and(|most| *value > most);
            let cells = [figure.budget, figure.recorded, figure.kvm, figure.xen].map(|numbers| numbers.of(vendor));
            lines.push(Line::new(&figure.title, *value, cells, if above { "above" } else { "" }));
        }
    }
    for (name, value) in values.iter().filter(|(name, _)| budget.figure(name).is_none()) {
        lines.push(Line::new(name, *value, [None; 4], "new"));
    }
    lines.iter().map(Line::text).collect()
}

/// A line of the table.
struct Line {
    title: String,
    cells: [String; 5],
    remark: &'static str,
}

impl Line {
    fn head() -> Self {
        let cells = ["Bulkhead", "budget", "recorded", "KVM", "Xen"].map(str::to_owned);
        Self { title: "figure".into(), cells, remark: "" }
    }

    /// With its budget, its record, KVM's and Xen's value.
    fn new(title: &str, value: u64, others: [Option<u64>; 4], remark: &'static str) -> Self {
        let [budget, recorded, kvm, xen] = others.map(|other| other.map_or_else(|| "-".to_owned(), |v| v.to_string()));
        Self { title: title.to_owned(), cells: [value.to_string(), budget, recorded, kvm, xen], remark }
    }

    fn text(&self) -> String {
        let [value, budget, recorded, kvm, xen] = &self.cells;
        let line = format!("{:<46}{value:>10}{budget:>10}{recorded:>10}{kvm:>10}{xen:>10}  {}", self.title, self.remark);
        format!("{}\n", line.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_sets_each_vendors_numbers_beside_its_values() {
        let budget = Budget::read().unwrap();
        let values = [("cpuid".to_owned(), 100_000), ("new-one".to_owned(), 5)];
        let line = |vendor, start: &str| {
            let table = table(vendor, &values, &budget);
            table.lines().find(|l| l.starts_with(start)).map(|l| l.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        let amd = line(Vendor::Amd, "CPUID").unwrap();
        assert_eq!([&amd[1], &amd[2], &amd[4], &amd[5], &amd[6]], ["100000", "150", "3126", "5380", "above"]);
        let intel = line(Vendor::Intel, "CPUID").unwrap();
        assert_eq!([&intel[1], &intel[4], &intel[5]], ["100000", "1059", "836"]);
        assert_eq!(line(Vendor::Amd, "new-one").unwrap(), ["new-one", "5", "-", "-", "-", "-", "new"]);
        assert_eq!(line(Vendor::Amd, "hypercall"), None, "what was not measured is not shown");
    }
}
