//! What `docs/performance.md` shows of the recorded figures: tables between marks in the text, and plots beside it.
//!
//! Everything comes from `tests/bench/budget.toml`, so that a test can say whether the documents are those of the records.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result, ensure};
use runner::{
    bench::Part,
    budget::{Budget, Figure},
    machine::Vendor,
    scaling::{Axis, Scaling},
};

use crate::{scaling, workspace::Workspace};

const DOCUMENT: &str = "docs/performance.md";
const VENDORS: [Vendor; 2] = [Vendor::Amd, Vendor::Intel];

/// Tables in it.
const TABLES: usize = 6;

/// The mark before a table that is made here, up to its name; the mark after it.
const BEGIN: &str = "<!-- made by `cargo xtask bench --record`: ";
const END: &str = "<!-- end -->";

/// A file, relative to the workspace, and what it should contain.
type Document = (String, String);

/// Writes tables and plots anew.
pub fn write(workspace: &Workspace, budget: &Budget, scaling: &Scaling) -> Result<()> {
    for (path, contents) in documents(&workspace.root, budget, scaling)? {
        fs::write(workspace.root.join(&path), contents).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

fn documents(root: &Path, budget: &Budget, scaling: &Scaling) -> Result<Vec<Document>> {
    let text = fs::read_to_string(root.join(DOCUMENT)).with_context(|| format!("cannot read {DOCUMENT}"))?;
    let mut all = vec![(DOCUMENT.to_owned(), with_tables(&text, budget, scaling)?)];
    all.extend(VENDORS.map(|vendor| (plot_path(vendor), plot(budget, vendor))));
    all.extend(Axis::ALL.map(|axis| (format!("docs/scaling-{}.svg", axis.key()), scaling::plot(scaling, budget, axis))));
    Ok(all)
}

fn plot_path(vendor: Vendor) -> String {
    format!(
        "docs/{}.svg",
        match vendor {
            Vendor::Amd => "exits-amd-v",
            Vendor::Intel => "exits-vt-x",
        }
    )
}

/// Replaces what stands between the marks.
fn with_tables(text: &str, budget: &Budget, scaling: &Scaling) -> Result<String> {
    let mut out = String::new();
    let mut lines = text.lines();
    let mut seen = 0;
    while let Some(line) = lines.next() {
        let _ = writeln!(out, "{line}");
        let Some(name) = line.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(" -->")) else { continue };
        let table = match name {
            "amd-v" => operations(budget, Vendor::Amd),
            "vt-x" => operations(budget, Vendor::Intel),
            "whole" => whole(budget),
            "reasons" => reasons(budget),
            "guests" => VENDORS.map(|vendor| scaling::table(scaling, budget, Axis::Guests, vendor)).join("\n"),
            "memory" => VENDORS.map(|vendor| scaling::table(scaling, budget, Axis::Memory, vendor)).join("\n"),
            _ => anyhow::bail!("{DOCUMENT}: there is no table {name}"),
        };
        ensure!(lines.any(|line| line == END), "{DOCUMENT}: the table {name} has no end");
        let _ = writeln!(out, "\n{table}\n{END}");
        seen += 1;
    }
    ensure!(seen == TABLES, "{DOCUMENT}: {seen} tables, not {TABLES}");
    Ok(out)
}

/// Those that say what an operation takes, in instructions.
fn is_operation(name: &str) -> bool {
    Part::of(name) == Part::Operations && !name.starts_with("image-")
}

fn operations(budget: &Budget, vendor: Vendor) -> String {
    let mut text =
        "| operation | Bulkhead | budget | native | KVM | KVM : Bulkhead |\n| --- | ---: | ---: | ---: | ---: | ---: |\n"
            .to_owned();
    for (_, figure) in budget.figures().filter(|(name, _)| is_operation(name)) {
        let Some(own) = figure.recorded.of(vendor) else { continue };
        let kvm = figure.kvm.of(vendor);
        let ratio = kvm.filter(|_| own > 0).map_or_else(dash, |kvm| ratio(kvm as f64 / own as f64));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {ratio} |",
            figure.title,
            grouped(own),
            allowed(figure, vendor),
            cell(figure.native.of(vendor)),
            cell(kvm)
        );
    }
    text
}

/// What is no operation: a boot, and sizes.
fn whole(budget: &Budget) -> String {
    let mut text =
        "| figure | AMD-V | VT-x | budget | KVM, AMD-V | KVM, VT-x |\n| --- | ---: | ---: | ---: | ---: | ---: |\n".to_owned();
    for (_, figure) in budget.figures().filter(|(name, _)| !is_operation(name)) {
        let [amd, intel] = VENDORS.map(|vendor| cell(figure.recorded.of(vendor)));
        let [kvm_amd, kvm_intel] = VENDORS.map(|vendor| cell(figure.kvm.of(vendor)));
        let above = VENDORS.into_iter().find(|vendor| is_above(figure, *vendor)).unwrap_or(Vendor::Amd);
        let _ = writeln!(text, "| {} | {amd} | {intel} | {} | {kvm_amd} | {kvm_intel} |", figure.title, allowed(figure, above));
    }
    text
}

/// Where the instructions go of each figure above its budget.
fn reasons(budget: &Budget) -> String {
    let above = budget.figures().filter(|(_, figure)| VENDORS.into_iter().any(|vendor| is_above(figure, vendor)));
    let lines: Vec<String> = above.map(|(_, figure)| format!("- *{}*: {}\n", figure.title, figure.why.trim())).collect();
    if lines.is_empty() { "None is above its budget.\n".to_owned() } else { lines.concat() }
}

fn is_above(figure: &Figure, vendor: Vendor) -> bool {
    matches!((figure.recorded.of(vendor), figure.budget.of(vendor)), (Some(own), Some(budget)) if own > budget)
}

/// The budget, bold if it is not met.
fn allowed(figure: &Figure, vendor: Vendor) -> String {
    let text = cell(figure.budget.of(vendor));
    if is_above(figure, vendor) { format!("**{text}**") } else { text }
}

fn dash() -> String {
    "-".to_owned()
}

fn cell(value: Option<u64>) -> String {
    value.map_or_else(dash, grouped)
}

/// With commas between groups of three digits.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn ratio(value: f64) -> String {
    if value < 1000.0 { format!("{value:.1}") } else { grouped(value.round() as u64) }
}

/// Geometry of a plot, in pixels.
mod size {
    pub const LABELS: f64 = 330.0;
    pub const DECADE: f64 = 85.0;
    pub const DECADES: u32 = 6;
    pub const ROW: f64 = 22.0;
    pub const BAR: f64 = 8.0;
    pub const TOP: f64 = 70.0;
    pub const BOTTOM: f64 = 30.0;
}

const OWN_COLOUR: &str = "#1f5fa8";
const KVM_COLOUR: &str = "#d98a1f";

/// Bars on a logarithmic scale: what each operation takes under Bulkhead and under KVM.
fn plot(budget: &Budget, vendor: Vendor) -> String {
    let rows: Vec<(&str, u64, u64)> = budget
        .figures()
        .filter(|(name, _)| is_operation(name))
        .filter_map(|(_, figure)| Some((figure.title.as_str(), figure.recorded.of(vendor)?, figure.kvm.of(vendor)?)))
        // What takes the same everywhere is no exit.
        .filter(|(_, own, kvm)| own != kvm)
        .collect();
    let width = size::LABELS + size::DECADE * f64::from(size::DECADES) + 90.0;
    let bottom = size::TOP + size::ROW * rows.len() as f64;
    let height = bottom + size::BOTTOM;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"24\" font-size=\"16\">{vendor}: host instructions of a round trip (logarithmic)</text>\n"
    );
    for (n, (name, colour)) in [("Bulkhead", OWN_COLOUR), ("KVM", KVM_COLOUR)].into_iter().enumerate() {
        let x = size::LABELS + 110.0 * n as f64;
        let _ = writeln!(svg, "<rect x=\"{x:.0}\" y=\"36\" width=\"12\" height=\"12\" fill=\"{colour}\"/>");
        let _ = writeln!(svg, "<text x=\"{:.0}\" y=\"47\">{name}</text>", x + 18.0);
    }
    for decade in 0..=size::DECADES {
        let x = size::LABELS + size::DECADE * f64::from(decade);
        let top = size::TOP - 8.0;
        let _ = writeln!(svg, "<line x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"#ddd\"/>");
        let label = grouped(10u64.pow(decade));
        let _ =
            writeln!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{label}</text>", bottom + 18.0);
    }
    for (n, (title, own, kvm)) in rows.into_iter().enumerate() {
        let y = size::TOP + size::ROW * n as f64;
        let x = size::LABELS - 8.0;
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"end\">{title}</text>", y + 12.0);
        for (bar, (value, colour)) in [(own, OWN_COLOUR), (kvm, KVM_COLOUR)].into_iter().enumerate() {
            let length = (value.max(1) as f64).log10() * size::DECADE + 1.0;
            let top = y + (size::BAR + 1.0) * bar as f64;
            let _ = writeln!(
                svg,
                "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{length:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
                size::LABELS,
                size::BAR
            );
            let (x, y) = (size::LABELS + length + 4.0, top + 7.5);
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"9\" fill=\"#333\">{}</text>", grouped(value));
        }
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_are_those_of_the_records() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for (path, wanted) in documents(root, &Budget::read().unwrap(), &Scaling::read().unwrap()).unwrap() {
            let found = fs::read_to_string(root.join(&path)).unwrap_or_default();
            assert!(found == wanted, "{path} is not what `cargo xtask bench --record` makes of tests/bench/budget.toml");
        }
    }

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([1.04, 999.94, 15776.0].map(ratio), ["1.0", "999.9", "15,776"]);
    }

    #[test]
    fn tables_need_their_marks() {
        let (budget, none) = (Budget::read().unwrap(), Scaling::default());
        assert!(with_tables("no table", &budget, &none).is_err());
        assert!(with_tables(&format!("{BEGIN}amd-v -->\n"), &budget, &none).is_err(), "no end");
        assert!(with_tables(&format!("{BEGIN}other -->\n{END}\n"), &budget, &none).is_err(), "unknown");
    }

    #[test]
    fn a_row_shows_what_is_known() {
        let budget = Budget::read().unwrap();
        let table = operations(&budget, Vendor::Amd);
        let row = table.lines().find(|l| l.starts_with("| hypercall |")).unwrap();
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let figure = budget.figure("hypercall").unwrap();
        assert_eq!(cells[1], grouped(figure.recorded.of(Vendor::Amd).unwrap()));
        assert_eq!([cells[3], cells[4]], ["-", "3,307"]);
        assert!(plot(&budget, Vendor::Intel).contains(">hypercall</text>"));
    }
}
