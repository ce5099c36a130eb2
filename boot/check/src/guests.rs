//! Which guests would start: the hypervisor's parser and loaders, on the files that GRUB would load.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use hv::{
    Module,
    config::{self, ConfigError, GuestConfig, Key, Reason},
    cpumask::CpuMask,
    layout,
    vm::Blueprint,
};
use x86defs::{Gpa, GuestMemory, GuestMemoryExt, OutsideRam, RamRange, Width};

use crate::report::{Mark, Report};

/// What the machine has.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub cpus: u32,
    /// Bytes.
    pub memory: Option<u64>,
}

/// A file that GRUB has to load.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BootModule {
    /// `config` or `file`.
    pub kind: &'static str,
    /// The module's name, which configurations use.
    pub name: String,
    pub path: PathBuf,
}

/// A guest that would start.
struct Guest {
    blueprint: Blueprint,
    path: PathBuf,
    modules: Vec<BootModule>,
    /// Of its files.
    bytes: u64,
}

/// Why a guest cannot start: sentences.
type Problems = Vec<String>;

/// Reads a configuration and what it names.
fn read(path: &Path) -> Result<Guest, Problems> {
    let one = |text: String| Vec::from([format!("{}: {text}", path.display())]);
    let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(|| one("the file's name is not UTF-8".into()))?.to_owned();
    if !name.ends_with(".cfg") || name.contains(char::is_control) {
        return Err(one("a configuration's name ends in .cfg, and has no control characters".into()));
    }
    let real = fs::canonicalize(path).map_err(|error| one(error.to_string()))?;
    let mut bytes = Vec::new();
    // One byte more than the hypervisor reads, so that it says what it says of a file that is too long.
    fs::File::open(&real)
        .and_then(|file| file.take(config::MAX_BYTES as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| one(error.to_string()))?;
    let errors = |errors: Vec<ConfigError>| errors.iter().map(ToString::to_string).collect::<Problems>();
    let config = config::parse_bytes(&path.display().to_string(), &bytes).map_err(errors)?;

    let folder = real.parent().unwrap_or(Path::new("/"));
    let mut modules = Vec::from([BootModule { kind: "config", name, path: real.clone() }]);
    let mut loaded = Vec::new();
    let mut problems = Vec::new();
    let mut size = 0;
    let named = [(Key::Kernel, Some(&config.kernel)), (Key::Ramdisk, config.ramdisk.as_ref())];
    for (key, name) in named.into_iter().filter_map(|(key, name)| Some((key, name?))) {
        let place = |what: String| format!("{}:{}: {}: {name:?}: {what}", path.display(), config.line(key), key.as_str());
        if name.contains(char::is_control) {
            problems.push(place("GRUB cannot load a file with control characters in its name".into()));
            continue;
        }
        // What the name means to the file system; symbolic links are followed here, because GRUB's idea of them ends at each file system's border.
        let found = fs::canonicalize(folder.join(name)).and_then(|path| Ok((fs::read(&path)?, path)));
        match found {
            Ok((data, path)) if path.to_str().is_some_and(|p| !p.contains(char::is_control)) => {
                size += data.len() as u64;
                // As long as this process lives, which is short.
                loaded.push(Module { name: String::leak(name.clone()), args: "", data: Vec::leak(data) });
                modules.push(BootModule { kind: "file", name: name.clone(), path });
            }
            Ok(_) => problems.push(place("GRUB cannot load a file with such a name".into())),
            Err(error) => problems.push(place(error.to_string())),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let blueprint = Blueprint::new(config, &loaded).map_err(|error| errors(Vec::from([error])))?;
    let memory = Sieve(layout::ram_ranges(blueprint.config.memory).to_vec());
    blueprint.load(&memory).map_err(|error| errors(Vec::from([error])))?;
    Ok(Guest { blueprint, path: path.to_owned(), modules, bytes: size })
}

/// Guests that start together, beside those that cannot.
fn read_all(paths: &[PathBuf]) -> (Vec<Guest>, Vec<(PathBuf, Problems)>) {
    let mut guests: Vec<Guest> = Vec::new();
    let mut bad = Vec::new();
    for path in paths {
        match read(path).and_then(|guest| fits_beside(&guests, &guest).map(|()| guest)) {
            Ok(guest) => guests.push(guest),
            Err(problems) => bad.push((path.clone(), problems)),
        }
    }
    (guests, bad)
}

/// Names are unique, those of guests and, unless they mean the same file, those of modules.
fn fits_beside(guests: &[Guest], new: &Guest) -> Result<(), Problems> {
    let config = &new.blueprint.config;
    if guests.iter().any(|g| g.blueprint.config.name == config.name) {
        return Err(Vec::from([config.error(Key::Name, Reason::NameInUse).to_string()]));
    }
    for module in &new.modules {
        let other = guests.iter().flat_map(|g| &g.modules).find(|m| m.name == module.name && m.path != module.path);
        if let Some(other) = other {
            let (name, path) = (&module.name, new.path.display());
            return Err(Vec::from([format!("{path}: {name:?} already means {}; give the whole path", other.path.display())]));
        }
    }
    Ok(())
}

/// What GRUB has to load for these configurations, without repetition; and what is wrong with those that are left out.
pub fn modules(paths: &[PathBuf]) -> (Vec<BootModule>, Problems) {
    let (guests, bad) = read_all(paths);
    let mut modules: Vec<BootModule> = Vec::new();
    for module in guests.into_iter().flat_map(|guest| guest.modules) {
        if !modules.iter().any(|m| m.name == module.name) {
            modules.push(module);
        }
    }
    (modules, bad.into_iter().flat_map(|(_, problems)| problems).collect())
}

/// Reports on `configs`, or on those of `folder`: the ones in its folder `auto` start, the others could.
pub fn check(configs: &[PathBuf], folder: &Path, limits: &Limits, report: &mut Report) {
    if !configs.is_empty() {
        report.section("Guests");
        let starting = describe(configs, limits, report);
        conclude(&starting, limits, report);
        return;
    }
    let auto = in_folder(&folder.join("auto"));
    report.section(format!("Guests that start ({})", folder.join("auto").display()));
    let starting = describe(&auto, limits, report);
    let real: Vec<PathBuf> = auto.iter().filter_map(|p| fs::canonicalize(p).ok()).collect();
    let others: Vec<PathBuf> =
        in_folder(folder).into_iter().filter(|p| fs::canonicalize(p).map_or(true, |p| !real.contains(&p))).collect();
    if !others.is_empty() {
        report.section("Guests that do not start by themselves");
        for other in &others {
            // Each has its own entry in the boot menu, alone.
            describe(std::slice::from_ref(other), limits, report);
        }
    }
    conclude(&starting, limits, report);
}

/// The configurations of a folder, by name.
pub fn in_folder(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.ends_with(".cfg") && !name.starts_with('.')))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

/// Memory and files of the guests that would start, in bytes.
#[derive(Default)]
struct Starting {
    guests: usize,
    memory: u64,
    files: u64,
}

fn describe(paths: &[PathBuf], limits: &Limits, report: &mut Report) -> Starting {
    let (guests, bad) = read_all(paths);
    let mut starting = Starting::default();
    for guest in &guests {
        let config = &guest.blueprint.config;
        if let Some(&cpus) = config.cpus.iter().find(|cpus| cpus.and(CpuMask::first(limits.cpus)).is_empty()) {
            let error = config.error(Key::Cpus, Reason::NoSuchCpus { cpus, host: limits.cpus });
            report.add(Mark::GuestFails, error.to_string());
            continue;
        }
        starting.guests += 1;
        starting.memory += config.memory;
        starting.files += guest.bytes;
        report.add(Mark::Good, sentence(guest, config));
        for remark in &config.warnings {
            report.add(Mark::Note, remark.to_string());
        }
    }
    for problem in bad.into_iter().flat_map(|(_, problems)| problems) {
        report.add(Mark::GuestFails, problem);
    }
    if paths.is_empty() {
        report.add(Mark::Note, "none");
    }
    starting
}

fn sentence(guest: &Guest, config: &GuestConfig) -> String {
    let kind = guest.blueprint.kernel_kind();
    let vcpus = if config.vcpus == 1 { "1 vCPU".into() } else { format!("{} vCPUs", config.vcpus) };
    let ramdisk = config.ramdisk.as_ref().map_or_else(String::new, |name| format!(", ramdisk {name}"));
    let (name, path) = (&config.name, guest.path.display());
    format!("{name} ({path}): {} MiB, {vcpus}, {kind}, kernel {}{ramdisk}", config.memory >> 20, config.kernel)
}

fn conclude(starting: &Starting, limits: &Limits, report: &mut Report) {
    let Starting { guests, memory, files } = starting;
    // A little for the hypervisor itself and its tables.
    let wanted = memory + files + (16 << 20);
    if let Some(there) = limits.memory.filter(|&there| wanted > there) {
        report.add(
            Mark::GuestFails,
            format!(
                "not enough memory for all: {} MiB wanted, {} MiB there; the last guests would be refused",
                wanted >> 20,
                there >> 20
            ),
        );
    }
    let plural = if *guests == 1 { "guest" } else { "guests" };
    report.close(format!("{guests} {plural} would start, with {} MiB of memory.", memory >> 20));
}

/// RAM that forgets: enough to see whether everything fits.
struct Sieve(Vec<RamRange>);

impl Sieve {
    fn look(&self, gpa: Gpa, len: u64) -> Result<(), OutsideRam> {
        if self.is_ram(gpa, len) { Ok(()) } else { Err(OutsideRam(gpa)) }
    }
}

impl GuestMemory for Sieve {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), OutsideRam> {
        buf.fill(0);
        self.look(gpa, buf.len() as u64)
    }
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), OutsideRam> {
        self.look(gpa, data.len() as u64)
    }
    fn fill(&self, gpa: Gpa, len: u64, _: u8) -> Result<(), OutsideRam> {
        self.look(gpa, len)
    }
    fn compare_exchange(&self, gpa: Gpa, width: Width, _: u64, _: u64) -> Result<Result<u64, u64>, OutsideRam> {
        self.look(gpa, width.bytes() as u64).map(|()| Err(0))
    }
    fn ranges(&self) -> &[RamRange] {
        &self.0
    }
}

#[cfg(test)]
mod tests;
