//! `cargo xtask run`: builds, packs, boots, and puts the guest's console on the terminal.

use std::{
    env,
    fs::{self, File},
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::mpsc::Sender,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use runner::{
    feed::Pace,
    image::{Grub, Image, Modules},
    lines::Event,
    machine::{Accel, Clock, Debugger, Firmware, Machine, Spec, Vendor},
    session::{self, Mailbox, Message, Observer, Options, Outcome, Stop},
    size::MemorySize,
};

use crate::{
    accel, debian,
    progress::Spinner,
    terminal::{self, ESCAPE_NAME, RawMode},
    tools::{self, Consent},
    verdict,
    workspace::Workspace,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum AccelArgument {
    /// KVM if it really offers nested virtualisation, else TCG with AMD-V, or Bochs for --vendor intel
    Auto,
    /// QEMU with nested KVM
    Kvm,
    /// QEMU in software: AMD-V only
    Tcg,
    /// Bochs, in software: VT-x and AMD-V, much slower
    Bochs,
}

impl AccelArgument {
    pub const fn wanted(self) -> Option<Accel> {
        match self {
            Self::Auto => None,
            Self::Kvm => Some(Accel::Kvm),
            Self::Tcg => Some(Accel::Tcg),
            Self::Bochs => Some(Accel::Bochs),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum VendorArgument {
    /// AMD-V (SVM)
    Amd,
    /// VT-x (VMX)
    Intel,
}

impl From<VendorArgument> for Vendor {
    fn from(argument: VendorArgument) -> Self {
        match argument {
            VendorArgument::Amd => Self::Amd,
            VendorArgument::Intel => Self::Intel,
        }
    }
}

/// What is booted: also for `cargo xtask iso`.
#[derive(Args, Clone, Debug)]
pub struct GuestArguments {
    /// A guest's configuration; may be given several times. Without any: Debian's cloud kernel with busybox
    #[arg(long = "config", value_name = "FILE.cfg", conflicts_with_all = ["kernel", "initrd", "cmdline"])]
    configs: Vec<PathBuf>,
    /// The kernel of the default guest (a Linux, multiboot or PVH kernel), instead of Debian's
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The initrd of the default guest; with --kernel there is none otherwise
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel command line of the default guest [default: console=ttyS0]
    #[arg(long, value_name = "STRING")]
    cmdline: Option<String>,
    /// Options for the hypervisor, after xtask's own
    #[arg(long, value_name = "STRING", default_value = "")]
    hv_cmdline: String,
    /// Memory of the machine (of which the default guest gets half, at most 512 MiB)
    #[arg(long = "mem", value_name = "SIZE", default_value = "1G")]
    memory: MemorySize,
    /// CPUs of the machine, and vCPUs of the default guest (at most 32)
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
}

#[derive(Args, Clone, Debug)]
pub struct RunArguments {
    #[command(flatten)]
    guests: GuestArguments,
    /// What executes the machine
    #[arg(long, value_enum, default_value_t = AccelArgument::Auto)]
    accel: AccelArgument,
    /// Whose virtualisation extension to use
    #[arg(long, value_enum)]
    vendor: Option<VendorArgument>,
    /// Boot by UEFI instead of BIOS (QEMU only)
    #[arg(long)]
    uefi: bool,
    /// Let the machine's clock count instructions exactly (TCG; Bochs always does)
    #[arg(long)]
    icount: bool,
    /// End with status 5 after this many seconds
    #[arg(long, value_name = "SECS")]
    timeout: Option<u64>,
    /// Write everything on the console to this file, too
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

/// The module's name of the default guest's configuration, and its name.
const DEFAULT_GUEST: &str = "debian";
const DEFAULT_GUEST_MEMORY_MIB: u32 = 512;

/// Options that the hypervisor gets unless the user gives these keys.
const OPTIONS: [&str; 3] = ["com1=115200,8n1", "console=com1", "on_last_guest=poweroff"];

/// The hypervisor's command line: ours where the user's does not say otherwise.
pub fn hypervisor_options(ours: &[&str], users: &str) -> String {
    let key = |word: &str| word.split('=').next().unwrap_or_default().to_owned();
    let given: Vec<String> = users.split_whitespace().map(key).collect();
    let ours = ours.iter().copied().filter(|word| !given.contains(&key(word)));
    ours.chain(users.split_whitespace()).collect::<Vec<_>>().join(" ")
}

/// Builds everything and writes the ISO.
pub fn make_iso(workspace: &Workspace, arguments: &GuestArguments, out: &Path, consent: Consent) -> Result<()> {
    tools::need(&[tools::IMAGE], consent)?;
    let mut modules = Modules::default();
    if arguments.configs.is_empty() {
        default_guest(workspace, arguments, &mut modules, consent)?;
    }
    for path in &arguments.configs {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_name().map_or_else(|| "guest.cfg".into(), |n| n.to_string_lossy().into_owned());
        // `parent` of a bare file name is the empty path, which is the current folder.
        let (_, missing) = modules.add_config(&name, &text, path.parent().unwrap_or(Path::new("")));
        for file in missing {
            eprintln!("xtask: warning: {}: {} = {:?}: there is no such file", path.display(), file.key, file.path);
        }
    }
    let hypervisor = workspace.hypervisor()?;
    let grub = Grub::prepare(&workspace.cache)?;
    Image { hypervisor, options: hypervisor_options(&OPTIONS, &arguments.hv_cmdline), modules, ..Image::default() }
        .write(&grub, out)
}

fn default_guest(workspace: &Workspace, arguments: &GuestArguments, modules: &mut Modules, consent: Consent) -> Result<()> {
    let kernel = match &arguments.kernel {
        Some(kernel) => {
            ensure!(kernel.is_file(), "there is no kernel {}", kernel.display());
            kernel.clone()
        }
        None => debian::kernel(&workspace.cache, consent)?,
    };
    let kernel = modules.add_file(&kernel);
    let initrd = match (&arguments.initrd, &arguments.kernel) {
        (Some(initrd), _) => {
            ensure!(initrd.is_file(), "there is no initrd {}", initrd.display());
            Some(modules.add_file(initrd))
        }
        (None, None) => {
            let initramfs = debian::initramfs(&workspace.cache, terminal::size().as_ref(), consent)?;
            Some(modules.add_bytes("initrd.img", initramfs))
        }
        (None, Some(_)) => None,
    };
    let memory = DEFAULT_GUEST_MEMORY_MIB.min(arguments.memory.mib() / 2).max(1);
    let cmdline = arguments.cmdline.as_deref().unwrap_or("console=ttyS0");
    // Not as a file's text, whose paths would be looked up on the host: these are modules already.
    let config = guest_config(DEFAULT_GUEST, memory, arguments.cpus.min(MOST_VCPUS), &kernel, initrd.as_deref(), cmdline);
    modules.add_bytes(&format!("{DEFAULT_GUEST}.cfg"), config.into_bytes());
    Ok(())
}

/// A guest may have no more.
const MOST_VCPUS: u32 = 32;

/// A guest's configuration that names modules.
fn guest_config(name: &str, memory_mib: u32, vcpus: u32, kernel: &str, initrd: Option<&str>, cmdline: &str) -> String {
    let ramdisk = initrd.map_or_else(String::new, |initrd| format!("ramdisk = \"{initrd}\"\n"));
    let cmdline = cmdline.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "name = \"{name}\"\ntype = \"hvm\"\nmemory = {memory_mib}\nvcpus = {vcpus}\nkernel = \"{kernel}\"\n{ramdisk}cmdline = \"{cmdline}\"\n"
    )
}

/// Runs, and returns the exit status.
pub fn run(workspace: &Workspace, arguments: &RunArguments, consent: Consent) -> Result<u8> {
    let choice = accel::choose(arguments.accel.wanted(), arguments.vendor.map(Vendor::from), accel::nested_kvm)?;
    let spec = Spec {
        accel: choice.accel,
        vendor: choice.vendor,
        cpus: arguments.guests.cpus,
        memory: arguments.guests.memory,
        firmware: if arguments.uefi { Firmware::Uefi } else { Firmware::Bios },
        clock: if arguments.icount { Clock::Instructions } else { Clock::RealTime },
        debugger: Debugger::Nothing,
    };
    spec.check()?;
    eprintln!("xtask: {} with {} ({})", spec.accel, spec.vendor, choice.reason);
    let emulator = if spec.accel == Accel::Bochs { tools::BOCHS } else { tools::QEMU };
    let firmware = if arguments.uefi { tools::UEFI } else { &[] };
    tools::need(&[emulator, firmware], consent)?;

    fs::create_dir_all(&workspace.cache)?;
    let work = tempfile::tempdir_in(&workspace.cache)?;
    let iso = work.path().join("bulkhead.iso");
    make_iso(workspace, &arguments.guests, &iso, consent)?;

    // The default guest's prompt is known: lines from a pipe wait for it.
    let own_userland =
        arguments.guests.configs.is_empty() && arguments.guests.kernel.is_none() && arguments.guests.initrd.is_none();
    let pace = if own_userland && !io::stdin().is_terminal() {
        Pace::AtPrompt { silence: Duration::from_secs(2) + spec.slowness() * Duration::from_millis(500) }
    } else {
        Pace::AtOnce
    };
    let options = Options {
        timeout: arguments.timeout.map(Duration::from_secs),
        stall: None,
        grace: Duration::from_secs(2) + spec.slowness() * Duration::from_millis(250),
        pace,
    };
    let log = match &arguments.log {
        Some(path) => Some(File::create(path).with_context(|| format!("cannot write {}", path.display()))?),
        None => None,
    };
    if io::stdin().is_terminal() {
        eprintln!("xtask: this terminal becomes the guest's console; {ESCAPE_NAME} ends the machine");
    }
    let outcome = follow(&spec, &iso, &options, log)?;
    let verdict = verdict::judge(&outcome);
    eprintln!("xtask: {}", verdict.sentence);
    Ok(verdict.status)
}

fn follow(spec: &Spec, iso: &Path, options: &Options, log: Option<File>) -> Result<Outcome> {
    let mailbox = Mailbox::default();
    terminal::watch(mailbox.sender.clone())?;
    let mut machine = Machine::start(spec, iso)?;
    terminal::forward_input(mailbox.sender.clone());
    let mut screen = Screen {
        sender: mailbox.sender.clone(),
        log,
        spinner: Some(Spinner::start("booting")),
        held: Vec::new(),
        raw: None,
        colour: false,
        after_cr: false,
        error: None,
    };
    screen.colour = io::stdout().is_terminal();
    let outcome = session::run(&mut machine, mailbox, options, &mut screen)?;
    screen.finish(&outcome);
    match screen.error {
        Some(error) => Err(error),
        None => Ok(outcome),
    }
}

/// The console as the user sees it.
struct Screen {
    sender: Sender<Message>,
    log: Option<File>,
    /// While the firmware and GRUB are at work.
    spinner: Option<Spinner>,
    /// What came before the hypervisor's first line: firmware's terminal sequences, of interest only if nothing follows.
    held: Vec<u8>,
    raw: Option<RawMode>,
    colour: bool,
    /// The last byte was a CR that is not written yet (stdout is no terminal).
    after_cr: bool,
    error: Option<anyhow::Error>,
}

const BANNER: &[u8] = b"(BH) Bulkhead ";

impl Screen {
    fn show(&mut self, bytes: &[u8]) {
        let shown = if self.colour { bytes.to_vec() } else { plain_line_ends(bytes, &mut self.after_cr) };
        let mut stdout = io::stdout().lock();
        if stdout.write_all(&shown).and_then(|()| stdout.flush()).is_err() {
            let _ = self.sender.send(Message::Stop(Stop::OutputClosed));
        }
    }

    fn hypervisor_starts(&mut self) {
        self.spinner = None;
        match RawMode::enter() {
            Ok(raw) => self.raw = raw,
            Err(error) => self.error = Some(error),
        }
    }

    fn finish(&mut self, outcome: &Outcome) {
        self.spinner = None;
        if !outcome.hypervisor_ran() && !self.held.is_empty() {
            let held = runner::lines::without_controls(&String::from_utf8_lossy(&self.held));
            eprintln!("xtask: the console so far:\n{}", held.trim_end());
        }
        self.raw = None;
        // A prompt or an unfinished line must not swallow our sentence.
        if io::stdout().is_terminal() {
            println!();
        }
    }
}

impl Observer for Screen {
    fn bytes(&mut self, bytes: &[u8]) {
        if let Some(log) = &mut self.log
            && let Err(error) = log.write_all(bytes)
        {
            self.log = None;
            self.error = Some(anyhow::Error::from(error).context("cannot write the log"));
        }
        if self.spinner.is_none() {
            return self.show(bytes);
        }
        self.held.extend_from_slice(bytes);
        if let Some(at) = self.held.windows(BANNER.len()).position(|w| w == BANNER) {
            self.hypervisor_starts();
            let shown = self.held.split_off(at);
            self.show(&shown);
        }
    }

    fn line(&mut self, _line: &str, event: Option<&Event>) {
        // A panic may come before anything else.
        if matches!(event, Some(Event::Panic(_))) && self.spinner.is_some() {
            self.hypervisor_starts();
            let held = std::mem::take(&mut self.held);
            self.show(&held);
        }
    }
}

/// CR LF as LF, for a reader that is no terminal. `after_cr` carries a CR from one call to the next.
fn plain_line_ends(bytes: &[u8], after_cr: &mut bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 1);
    for &byte in bytes {
        match byte {
            b'\r' => *after_cr = true,
            b'\n' => {
                *after_cr = false;
                out.push(byte);
            }
            _ => {
                if std::mem::take(after_cr) {
                    out.push(b'\r');
                }
                out.push(byte);
            }
        }
    }
    out
}

/// `cargo xtask iso`.
#[derive(Args, Clone, Debug)]
pub struct IsoArguments {
    #[command(flatten)]
    guests: GuestArguments,
    /// Where to write it
    #[arg(long, value_name = "FILE", default_value = "bulkhead.iso")]
    out: PathBuf,
}

pub fn iso(workspace: &Workspace, arguments: &IsoArguments, consent: Consent) -> Result<()> {
    let out = env::current_dir()?.join(&arguments.out);
    make_iso(workspace, &arguments.guests, &out, consent)?;
    eprintln!("xtask: {} boots from CD or USB stick, under BIOS and UEFI", out.display());
    Ok(())
}

/// The ISO with the default guest.
pub fn default_iso(workspace: &Workspace, out: &Path, consent: Consent) -> Result<()> {
    let arguments = GuestArguments {
        configs: Vec::new(),
        kernel: None,
        initrd: None,
        cmdline: None,
        hv_cmdline: String::new(),
        memory: MemorySize::from_mib(1024),
        cpus: 1,
    };
    make_iso(workspace, &arguments, out, consent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_options_replace_ours() {
        assert_eq!(hypervisor_options(&OPTIONS, ""), OPTIONS.join(" "));
        assert_eq!(
            hypervisor_options(&OPTIONS, " noreboot  console=vga"),
            "com1=115200,8n1 on_last_guest=poweroff noreboot console=vga"
        );
    }

    #[test]
    fn a_command_line_is_quoted_for_toml() {
        let config = guest_config("x", 5, 2, "k", None, r#"a="b c" d=\e"#);
        assert!(config.ends_with("cmdline = \"a=\\\"b c\\\" d=\\\\e\"\n"), "{config}");
        assert!(!config.contains("ramdisk"));
    }

    #[test]
    fn line_ends_for_files() {
        let mut after_cr = false;
        let mut all = Vec::new();
        for part in [&b"one\r"[..], b"\ntwo\r\r\n", b"50%\r60%\n"] {
            all.extend(plain_line_ends(part, &mut after_cr));
        }
        assert_eq!(all, b"one\ntwo\n50%\r60%\n");
    }
}
