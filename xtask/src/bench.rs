//! `cargo xtask bench`: what VM exits and the like cost in host instructions, beside the budget and what the peers take.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use runner::{
    bench, boots,
    budget::{Budget, Column},
    machine::Vendor,
    peer::{self, KvmHost, Peer},
    scaling::Scaling,
    suite,
};
use serde_json::{Map, Value, json};

use crate::{
    debian,
    progress::{Spinner, say},
    report,
    run::VendorArgument,
    scaling, test,
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
    /// Take the figures for the recorded ones, in tests/bench/budget.toml, and make the tables and plots of docs/performance.md of them
    #[arg(long)]
    record: bool,
    /// Also run the benchmark's guest without Bulkhead: straight on the emulator, or under KVM in Debian's kernel (several: with commas)
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PEER")]
    peer: Vec<PeerArgument>,
    /// Measure what some operations cost as guests and their memory grow, instead, and make the tables and plots of it
    #[arg(long, conflicts_with_all = ["filter", "json", "record", "peer", "trace"])]
    scale: bool,
    /// Write the instructions of one operation, with their functions and lines, instead: its name in tests/bench/budget.toml
    #[arg(long, value_name = "NAME", conflicts_with_all = ["filter", "json", "record", "peer"])]
    trace: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum PeerArgument {
    Native,
    Kvm,
}

impl PeerArgument {
    const fn title(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Kvm => "KVM",
        }
    }

    const fn column(self) -> Column {
        match self {
            Self::Native => Column::Native,
            Self::Kvm => Column::Kvm,
        }
    }

    /// Gets and builds what it needs.
    fn prepare(self, workspace: &Workspace, vendor: Vendor, consent: Consent) -> Result<Peer> {
        if self == Self::Native {
            return Ok(Peer::Native);
        }
        let host = debian::kvm_host(&workspace.cache, vendor, consent)?;
        Ok(Peer::Kvm(KvmHost { kernel: host.kernel, modules: host.modules, program: workspace.kvm_peer()? }))
    }
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
    if arguments.scale {
        let scaling = scaling::run(&test::assets(workspace, true, None, work.path())?, &vendors)?;
        return report::write(workspace, &Budget::read()?, &scaling);
    }
    // Also the figures of a boot, which takes a minute.
    let boot = boots::NAMES.iter().any(|name| name.contains(&arguments.filter));
    let linux = if boot {
        Some((debian::kernel(&workspace.cache, consent)?, debian::initramfs(&workspace.cache, None, consent)?))
    } else {
        None
    };
    let assets = test::assets(workspace, true, linux, work.path())?;
    let mut budget = Budget::read()?;
    let mut document = Map::new();
    for vendor in vendors {
        let accel = bench::platform(vendor).spec().accel;
        let spinner = Spinner::start(&format!("measuring {vendor} on {accel}"));
        let mut values = bench::measure(&assets, vendor, &arguments.filter)?;
        let mut exits = Vec::new();
        if boot {
            spinner.set_text(format!("booting Linux with {vendor} on {accel}"));
            let boot = boots::measure(&assets, vendor)?;
            values.extend(boot.figures.into_iter().filter(|(name, _)| name.contains(&arguments.filter)));
            exits = boot.exits;
        }
        drop(spinner);
        say(format_args!("\n{vendor} on {accel}: median host instructions of a round trip, seen by the guest"));
        say(table(vendor, &values, &budget).trim_end());
        if !exits.is_empty() {
            let kinds: Vec<String> = exits.iter().map(|(name, count)| format!("{name} {count}")).collect();
            say(format_args!("Linux's exits: {}", kinds.join(", ")));
        }
        let mut entry = json!({ "emulator": accel.to_string(), "figures": object(&values), "linux-exits": object(&exits) });
        let mut peers = Vec::new();
        for peer in &arguments.peer {
            let ready = peer.prepare(workspace, vendor, consent)?;
            let spinner = Spinner::start(&format!("measuring {} with {vendor} on {accel}", peer.title()));
            let measured = peer::measure(&assets, vendor, &arguments.filter, &ready)?;
            drop(spinner);
            entry[peer.title()] = Value::Object(object(&measured));
            peers.push((*peer, measured));
        }
        if !peers.is_empty() {
            say(format_args!(
                "\nThe same guest without Bulkhead on the same machine; ratio: its instructions for one of Bulkhead's"
            ));
            say(comparison(&values, &peers, &budget).trim_end());
        }
        document.insert(vendor.to_string(), entry);
        if arguments.record {
            budget = budget.record(Column::Recorded, vendor, &values);
            for (peer, measured) in &peers {
                budget = budget.record(peer.column(), vendor, measured);
            }
        }
    }
    if arguments.record {
        budget.write()?;
        report::write(workspace, &budget, &Scaling::read()?)?;
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&Value::Object(document))? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn object(values: &[(String, u64)]) -> Map<String, Value> {
    values.iter().map(|(name, value)| (name.clone(), Value::from(*value))).collect()
}

/// Bulkhead's values beside those of the peers that measured the same; those of a hypervisor with their ratio to Bulkhead's.
fn comparison(values: &[(String, u64)], peers: &[(PeerArgument, Vec<(String, u64)>)], budget: &Budget) -> String {
    let mut text = format!("{:<46}{:>10}", "figure", "Bulkhead");
    let cell = |peer: PeerArgument, value: &str, ratio: &str| {
        format!("{value:>10}{}", if peer == PeerArgument::Native { String::new() } else { format!("{ratio:>10}") })
    };
    text.extend(peers.iter().map(|(peer, _)| cell(*peer, peer.title(), "ratio")));
    text.push('\n');
    for (name, figure) in budget.figures() {
        let find = |list: &[(String, u64)]| list.iter().find(|(measured, _)| measured == name).map(|(_, value)| *value);
        let Some(own) = find(values) else { continue };
        let theirs: Vec<_> = peers.iter().map(|(peer, measured)| (*peer, find(measured))).collect();
        if theirs.iter().all(|(_, value)| value.is_none()) {
            continue;
        }
        let _ = write!(text, "{:<46}{own:>10}", figure.title);
        for (peer, value) in theirs {
            let value_text = value.map_or_else(|| "-".to_owned(), |v| v.to_string());
            // Of no instructions, no ratio can be made.
            let ratio = value.filter(|_| own > 0).map_or_else(|| "-".to_owned(), |v| format!("{:.1}", v as f64 / own as f64));
            text += &cell(peer, &value_text, &ratio);
        }
        text.push('\n');
    }
    text
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
    fn peers_stand_beside_what_both_measured() {
        let budget = Budget::read().unwrap();
        let list = |pairs: &[(&str, u64)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect::<Vec<_>>();
        let own = list(&[("cpuid", 100), ("hypercall", 50), ("wbinvd", 3)]);
        let peers =
            [(PeerArgument::Native, list(&[("cpuid", 25)])), (PeerArgument::Kvm, list(&[("cpuid", 150), ("hypercall", 5000)]))];
        let table = comparison(&own, &peers, &budget);
        let lines: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(
            lines,
            [
                vec!["figure", "Bulkhead", "native", "KVM", "ratio"],
                vec!["CPUID", "100", "25", "150", "1.5"],
                vec!["hypercall", "50", "-", "5000", "100.0"]
            ]
        );
    }

    #[test]
    fn the_table_sets_each_vendors_numbers_beside_its_values() {
        let budget = Budget::read().unwrap();
        let values = [("cpuid".to_owned(), 100_000), ("new-one".to_owned(), 5)];
        let line = |vendor, start: &str| {
            let table = table(vendor, &values, &budget);
            table.lines().find(|l| l.starts_with(start)).map(|l| l.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        let amd = line(Vendor::Amd, "CPUID").unwrap();
        assert_eq!([&amd[1], &amd[2], &amd[4], &amd[5], &amd[6]], ["100000", "150", "3055", "5380", "above"]);
        let intel = line(Vendor::Intel, "CPUID").unwrap();
        assert_eq!([&intel[1], &intel[4], &intel[5]], ["100000", "1060", "836"]);
        assert_eq!(line(Vendor::Amd, "new-one").unwrap(), ["new-one", "5", "-", "-", "-", "-", "new"]);
        assert_eq!(line(Vendor::Amd, "hypercall"), None, "what was not measured is not shown");
    }
}
