//! Measures whether exits cost more as a host has more guests, and as a guest has more memory; and keeps what was measured, in
//! `tests/bench/scaling.toml`.

use std::{collections::BTreeMap, fmt::Write as _, fs, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::{
    bench,
    image::{Image, Modules},
    lines::Event,
    list::GUEST_KERNEL,
    machine::{Machine, Spec, Vendor},
    peer,
    size::MemorySize,
    suite::{self, Assets},
};

/// The file itself.
pub const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../bench/scaling.toml");

/// What grows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Axis {
    /// Guests in the host, all but one of them idle.
    Guests,
    /// A guest's memory in MiB.
    Memory,
}

impl Axis {
    pub const ALL: [Self; 2] = [Self::Guests, Self::Memory];

    /// In the file.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Guests => "guests",
            Self::Memory => "memory",
        }
    }

    /// Where it is measured.
    #[must_use]
    pub const fn points(self, vendor: Vendor) -> &'static [u32] {
        match (self, vendor) {
            (Self::Guests, _) => &[1, 2, 4, 8, 16, 32, 64],
            (Self::Memory, Vendor::Amd) => &[64, 128, 256, 512, 1024, 2048, 4096, 8192],
            // Bochs has 2 GiB.
            (Self::Memory, Vendor::Intel) => &[64, 128, 256, 512, 1024, 1536],
        }
    }
}

/// The figures, by their names in the budget.
pub const FIGURES: [&str; 6] = ["cpuid", "pit-read", "mmio-nothing-there", "x2apic-timer-arm", "hlt-alone", "timer-late-halted"];

/// Memory in MiB of a guest that is not the one to have more.
const SMALL: u32 = 16;
/// For the hypervisor and what the boot loader leaves, in MiB.
const HOST: u32 = 256;
const NAME: &str = "bench";
/// Far more than is needed.
const LIMIT: Duration = Duration::from_secs(1200);

fn config(name: &str, memory: u32, rest: &str) -> Vec<u8> {
    format!(
        "name = \"{name}\"\ntype = \"hvm\"\nmemory = {memory}\nkernel = \"{GUEST_KERNEL}\"\n{rest}\
         on_poweroff = \"destroy\"\non_reboot = \"destroy\"\non_crash = \"destroy\"\n"
    )
    .into_bytes()
}

/// Measures [`FIGURES`] at a point of an axis.
pub fn measure(assets: &Assets, vendor: Vendor, axis: Axis, point: u32) -> Result<Vec<(String, u64)>> {
    let (guests, memory) = match axis {
        Axis::Guests => (point, SMALL),
        Axis::Memory => (1, point),
    };
    let mut modules = Modules::default();
    suite::add_guest_kernel(assets, &mut modules)?;
    for n in 1..guests {
        // Without a serial port, lest the others share the console.
        let rest = "cmdline = \"test=idle\"\nserial = \"none\"\n";
        modules.add_bytes(&format!("idle{n}.cfg"), config(&format!("idle{n}"), SMALL, rest));
    }
    let rest = format!("cmdline = \"test={} filter={}\"\nisa_debug_exit = 0xf4\n", bench::CASE, FIGURES.join(","));
    modules.add_bytes("measured.cfg", config(NAME, memory, &rest));
    let options = format!("{} autostart=parallel", suite::OPTIONS);
    let image = Image { hypervisor: assets.hypervisor.clone(), options, modules, ..Image::default() };
    let iso = assets.work.join("scaling.iso");
    image.write(&assets.grub, &iso)?;
    let platform = bench::platform(vendor).spec();
    let needed = guests * SMALL + memory + HOST;
    let spec = Spec { memory: MemorySize::from_mib(needed.max(platform.memory.mib())), ..platform };
    let mut machine = Machine::start(&spec, &iso)?;
    let ended =
        |line: &str| matches!(Event::parse(line), Some(Event::Ended { guest, .. } | Event::Refused { guest }) if guest == NAME);
    let lines = peer::follow(&mut machine, LIMIT, |line| ended(line) || Event::parse(line) == Some(Event::AllEnded))?;
    let found: BTreeMap<String, u64> = lines.iter().filter_map(|line| bench::line(line)).collect();
    FIGURES
        .iter()
        .map(|name| match found.get(*name) {
            Some(value) => Ok(((*name).to_owned(), *value)),
            None => bail!("{name} was not measured: {}\n{}", machine.messages(), lines.join("\n")),
        })
        .collect()
}

/// A figure at each point of an axis.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
pub struct Series {
    pub at: Vec<u32>,
    #[serde(flatten)]
    pub figures: BTreeMap<String, Vec<u64>>,
}

impl Series {
    /// Adds what was measured at a point.
    pub fn push(&mut self, point: u32, values: &[(String, u64)]) {
        self.at.push(point);
        for (name, value) in values {
            self.figures.entry(name.clone()).or_default().push(*value);
        }
    }
}

/// The whole file: for each axis and vendor.
#[derive(Clone, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(transparent)]
pub struct Scaling(BTreeMap<String, BTreeMap<String, Series>>);

const fn vendor_key(vendor: Vendor) -> &'static str {
    match vendor {
        Vendor::Amd => "amd",
        Vendor::Intel => "intel",
    }
}

impl Scaling {
    /// Reads [`PATH`].
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))?;
        let scaling: Self = toml::from_str(&text).with_context(|| format!("in {PATH}"))?;
        for series in scaling.0.values().flat_map(BTreeMap::values) {
            let whole =
                FIGURES.iter().all(|name| series.figures.get(*name).is_some_and(|values| values.len() == series.at.len()));
            ensure!(whole, "{PATH}: a series has not as many values as points");
        }
        Ok(scaling)
    }

    /// What was measured, if it was.
    #[must_use]
    pub fn series(&self, axis: Axis, vendor: Vendor) -> Option<&Series> {
        self.0.get(axis.key())?.get(vendor_key(vendor))
    }

    pub fn set(&mut self, axis: Axis, vendor: Vendor, series: Series) {
        self.0.entry(axis.key().to_owned()).or_default().insert(vendor_key(vendor).to_owned(), series);
    }

    fn text(&self) -> String {
        let mut text = "# What `cargo xtask bench --scale` has measured, in host instructions: at each point of `at` (guests in the host, or MiB of a\n\
                        # guest's memory), figures by their names in budget.toml.\n"
            .to_owned();
        for (axis, vendors) in &self.0 {
            for (vendor, series) in vendors {
                let _ = write!(text, "\n[{axis}.{vendor}]\nat = {:?}\n", series.at);
                for (name, values) in &series.figures {
                    let _ = writeln!(text, "{name} = {values:?}");
                }
            }
        }
        text
    }

    /// Writes [`PATH`].
    pub fn write(&self) -> Result<()> {
        fs::write(PATH, self.text()).with_context(|| format!("cannot write {PATH}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        let mut series = Series::default();
        for point in [1, 64] {
            series.push(point, &FIGURES.map(|name| (name.to_owned(), u64::from(point) * 100)));
        }
        let mut scaling = Scaling::default();
        scaling.set(Axis::Guests, Vendor::Amd, series.clone());
        scaling.set(Axis::Memory, Vendor::Intel, series.clone());
        let again: Scaling = toml::from_str(&scaling.text()).unwrap();
        assert_eq!(again, scaling);
        assert_eq!(again.series(Axis::Guests, Vendor::Amd), Some(&series));
        assert_eq!(again.series(Axis::Guests, Vendor::Intel), None);
    }

    #[test]
    fn the_file_is_good() {
        let scaling = Scaling::read().unwrap();
        for (axis, vendor) in Axis::ALL.into_iter().flat_map(|axis| [(axis, Vendor::Amd), (axis, Vendor::Intel)]) {
            assert_eq!(scaling.series(axis, vendor).unwrap().at, axis.points(vendor));
        }
    }
}
