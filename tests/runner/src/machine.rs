//! The machine that Bulkhead runs on: QEMU or Bochs, with its serial line in our hands.

use std::{
    fmt::{self, Write as _},
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::{size::MemorySize, sys};

/// What executes the machine's instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accel {
    /// QEMU on nested hardware virtualisation.
    Kvm,
    /// QEMU in software.
    Tcg,
    Bochs,
}

/// Whose virtualisation extension the machine has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vendor {
    /// AMD-V (SVM).
    Amd,
    /// VT-x (VMX).
    Intel,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "QEMU with KVM",
            Self::Tcg => "QEMU TCG",
            Self::Bochs => "Bochs",
        })
    }
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Amd => "AMD-V",
            Self::Intel => "VT-x",
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Firmware {
    Bios,
    Uefi,
}

/// How the machine's clock runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clock {
    /// With the host's.
    RealTime,
    /// One TSC tick is one instruction. Always so on Bochs.
    Instructions,
}

/// What Bochs' debugger does.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Debugger {
    #[default]
    Nothing,
    /// Writes down what is executed from the first magic breakpoint (`XCHG BX, BX`) to the second one, where it ends the machine.
    Trace,
}

/// A machine to start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spec {
    pub accel: Accel,
    pub vendor: Vendor,
    pub cpus: u32,
    pub memory: MemorySize,
    pub firmware: Firmware,
    pub clock: Clock,
    pub debugger: Debugger,
}

/// QEMU's monitor, in the machine's own folder.
const MONITOR: &str = "monitor";

/// The unit in which Bochs' configuration can ask for memory.
const BOCHS_MEMORY_MIB: std::ops::RangeInclusive<u32> = 1..=2048;

impl Spec {
    /// A machine with one CPU and 1 GiB under BIOS.
    #[must_use]
    pub const fn new(accel: Accel, vendor: Vendor) -> Self {
        let memory = MemorySize::from_mib(1024);
        Self { accel, vendor, cpus: 1, memory, firmware: Firmware::Bios, clock: Clock::RealTime, debugger: Debugger::Nothing }
    }

    /// Refuses what the emulator cannot do, naming it.
    pub fn check(&self) -> Result<()> {
        ensure!(self.cpus > 0, "a machine needs at least one CPU");
        ensure!(self.debugger == Debugger::Nothing || self.accel == Accel::Bochs, "only Bochs writes traces");
        match self.accel {
            Accel::Tcg if self.vendor == Vendor::Intel => {
                bail!("QEMU's TCG has no VT-x: use --accel bochs (or kvm) for --vendor intel")
            }
            Accel::Tcg if self.clock == Clock::Instructions => {
                ensure!(self.cpus == 1, "--icount counts with one CPU only: leave out --cpus {}", self.cpus);
            }
            Accel::Kvm if self.clock == Clock::Instructions => bail!("--icount is an ability of TCG: use --accel tcg"),
            Accel::Bochs => {
                ensure!(self.firmware == Firmware::Bios, "--uefi needs QEMU: Bochs runs with its own BIOS only");
                ensure!(self.cpus <= 8, "Bochs simulates at most 8 CPUs");
                ensure!(
                    BOCHS_MEMORY_MIB.contains(&self.memory.mib()),
                    "Bochs takes at most {} MiB of memory",
                    BOCHS_MEMORY_MIB.end()
                );
            }
            Accel::Kvm | Accel::Tcg => {}
        }
        Ok(())
    }

    /// How much longer than on real hardware things may take, roughly.
    #[must_use]
    pub const fn slowness(&self) -> u32 {
        match (self.accel, self.clock) {
            (Accel::Kvm, _) => 1,
            (Accel::Tcg, Clock::RealTime) => 4,
            (Accel::Tcg, Clock::Instructions) => 8,
            (Accel::Bochs, _) => 40,
        }
    }

    /// True if all CPUs of this machine must take turns on one of ours.
    ///
    /// Whenever a CPU of QEMU's TCG loads the x87 status word (FXRSTOR, XRSTOR ...), it clears a flag of the first CPU, in a word that also says
    /// whether that one is in guest mode with nested paging, and whether its GIF is set; it does so without any synchronisation
    /// (`cpu_clear_ignne`). When both change that word at the same time, the first CPU goes on with the wrong page tables, which is a triple
    /// fault in the guest or in the hypervisor, or without interrupts. It is one instruction of the host, so two threads of which only
    /// one runs at a time do no harm.
    #[must_use]
    pub const fn shares_one_cpu(&self) -> bool {
        matches!(self.accel, Accel::Tcg) && self.cpus > 1
    }

    fn qemu(&self, iso: &Path, work: &Path) -> Result<Command> {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-vga", "std", "-display", "none"]);
        // By its relative name: the path of a socket must be short.
        qemu.args(["-monitor", &format!("unix:{MONITOR},server=on,wait=off")]);
        match self.accel {
            // A CPU model that can migrate has no invariant TSC.
            Accel::Kvm => qemu.args(["-machine", "q35,accel=kvm", "-cpu", "host,migratable=off"]),
            _ => qemu.args(["-machine", "q35,accel=tcg", "-cpu", "EPYC-Rome"]),
        };
        qemu.args(["-smp", &self.cpus.to_string(), "-m", &format!("{}M", self.memory.mib())]);
        if self.clock == Clock::Instructions {
            // The clock and the seed make every run the same.
            qemu.args(["-icount", "shift=0,sleep=off", "-rtc", "base=2024-01-01T00:00:00,clock=vm", "-seed", "1"]);
        }
        if self.firmware == Firmware::Uefi {
            add_uefi(&mut qemu, work)?;
        }
        qemu.arg("-drive").arg(format!("media=cdrom,readonly=on,format=raw,file={}", qemu_quote(iso)?));
        qemu.args(["-boot", "d", "-chardev", "stdio,id=com1,signal=off", "-serial", "chardev:com1"]);
        Ok(qemu)
    }

    fn bochs(&self, iso: &Path, work: &Path, tty: &Path) -> Result<Command> {
        let file = |path: &Path| -> Result<String> {
            let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
            ensure!(!text.contains(['"', ',', '$']), "Bochs' configuration cannot name {text}");
            Ok(format!("\"{text}\""))
        };
        let mut config = String::new();
        writeln!(config, "plugin_ctrl: unmapped=1, biosdev=1, speaker=0")?;
        writeln!(config, "config_interface: textconfig")?;
        writeln!(config, "display_library: rfb, options=\"timeout=0\"")?;
        writeln!(config, "romimage: file=/usr/share/bochs/BIOS-bochs-latest, options=fastboot")?;
        writeln!(config, "vgaromimage: file=/usr/share/vgabios/vgabios.bin")?;
        // With VESA modes on offer, GRUB crashes here as soon as a kernel's header asks for a framebuffer.
        writeln!(config, "vga: extension=none")?;
        writeln!(config, "memory: guest={0}, host={0}", self.memory.mib())?;
        let model = match self.vendor {
            Vendor::Amd => "ryzen",
            Vendor::Intel => "corei7_haswell_4770",
        };
        writeln!(config, "cpu: model={model}, count={}, ips=1000000000, reset_on_triple_fault=0", self.cpus)?;
        writeln!(config, "clock: sync=none, time0=1700000000, rtc_sync=0")?;
        writeln!(config, "pci: enabled=1, chipset=i440fx")?;
        writeln!(config, "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14")?;
        writeln!(config, "ata0-master: type=cdrom, path={}, status=inserted", file(iso)?)?;
        writeln!(config, "boot: cdrom")?;
        writeln!(config, "com1: enabled=1, mode=term, dev={}", file(tty)?)?;
        writeln!(config, "port_e9_hack: enabled=1")?;
        writeln!(config, "log: {}", file(&work.join("bochs.log"))?)?;
        writeln!(config, "panic: action=fatal")?;
        writeln!(config, "error: action=report")?;
        // Debian's Bochs has the debugger, which waits for a command.
        let commands = match self.debugger {
            Debugger::Nothing => "c\n",
            Debugger::Trace => {
                writeln!(config, "magic_break: enabled=1")?;
                "c\ntrace on\nc\nquit\n"
            }
        };
        fs::write(work.join("bochsrc"), config)?;
        fs::write(work.join("commands"), commands)?;
        let mut bochs = Command::new("bochs");
        bochs.arg("-q").arg("-f").arg(work.join("bochsrc")).arg("-rc").arg(work.join("commands"));
        Ok(bochs)
    }
}

/// Gives QEMU the UEFI firmware, with its variables in `work`.
pub(crate) fn add_uefi(qemu: &mut Command, work: &Path) -> Result<()> {
    let (code, variables) = ovmf().context("no UEFI firmware found: install the package ovmf")?;
    let own = work.join("variables.fd");
    fs::copy(variables, &own).context("cannot copy the UEFI variables")?;
    qemu.arg("-drive").arg(format!("if=pflash,unit=0,format=raw,readonly=on,file={}", qemu_quote(&code)?));
    qemu.arg("-drive").arg(format!("if=pflash,unit=1,format=raw,file={}", qemu_quote(&own)?));
    Ok(())
}

/// A path as the value of an option of QEMU, in which a comma is written twice.
pub(crate) fn qemu_quote(path: &Path) -> Result<String> {
    Ok(path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?.replace(',', ",,"))
}

/// The UEFI firmware and its empty variable store, as packaged by Debian (also in its older, smaller form).
#[must_use]
pub fn ovmf() -> Option<(PathBuf, PathBuf)> {
    [("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"), ("OVMF_CODE.fd", "OVMF_VARS.fd")].into_iter().find_map(|(code, variables)| {
        let found = (Path::new("/usr/share/OVMF").join(code), Path::new("/usr/share/OVMF").join(variables));
        (found.0.is_file() && found.1.is_file()).then_some(found)
    })
}

/// A running machine. Dropping it ends it.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    output: Option<ConsoleReader>,
    input: Option<File>,
    ended: Arc<AtomicBool>,
    /// Where the emulator writes its own messages.
    messages: Vec<PathBuf>,
    /// Working files, kept while the machine runs.
    work: Option<TempDir>,
}

impl Machine {
    /// Starts the machine with `iso` in its drive.
    pub fn start(spec: &Spec, iso: &Path) -> Result<Self> {
        spec.check()?;
        let work = tempfile::tempdir()?;
        if spec.accel == Accel::Bochs {
            let pty = sys::Pty::open().context("cannot open a pseudo-terminal")?;
            let command = spec.bochs(iso, work.path(), &pty.path)?;
            let messages = vec![work.path().join("emulator.log"), work.path().join("bochs.log")];
            // Its display is a VNC server that listens on every address: nobody shall reach it, and two shall not meet.
            let surroundings = sys::Surroundings { network: sys::Network::Isolated, ..sys::OPEN };
            Self::spawn(command, Link::Pty(pty), surroundings, messages, Some(work))
        } else {
            let command = spec.qemu(iso, work.path())?;
            let messages = vec![work.path().join("emulator.log")];
            let cpus = if spec.shares_one_cpu() { sys::Cpus::One } else { sys::Cpus::All };
            Self::spawn(command, Link::Pipes, sys::Surroundings { cpus, ..sys::OPEN }, messages, Some(work))
        }
    }

    /// Starts a machine that is described elsewhere; `work` is kept while it runs.
    pub(crate) fn from_emulator(command: Command, work: TempDir) -> Result<Self> {
        let messages = vec![work.path().join("emulator.log")];
        Self::spawn(command, Link::Pipes, sys::OPEN, messages, Some(work))
    }

    /// Any program whose standard input and output stand for the machine's serial line.
    pub fn from_program(command: Command) -> Result<Self> {
        Self::spawn(command, Link::Pipes, sys::OPEN, Vec::new(), None)
    }

    fn spawn(
        mut command: Command,
        link: Link,
        surroundings: sys::Surroundings,
        messages: Vec<PathBuf>,
        work: Option<TempDir>,
    ) -> Result<Self> {
        let own_messages = match messages.first() {
            Some(path) => Stdio::from(File::create(path)?),
            None => Stdio::null(),
        };
        command.stderr(own_messages);
        match &link {
            Link::Pipes => command.stdin(Stdio::piped()).stdout(Stdio::piped()),
            Link::Pty(_) => {
                // The debugger of Bochs reads commands: it shall find an end, not our terminal.
                let out = messages.first().map(|path| File::options().append(true).open(path)).transpose()?;
                command.stdin(Stdio::null()).stdout(out.map_or_else(Stdio::null, Stdio::from))
            }
        };
        if let Some(work) = &work {
            command.current_dir(work.path());
        }
        sys::confine(&mut command, surroundings);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let ended = Arc::new(AtomicBool::new(false));
        let (input, output, slave) = match link {
            Link::Pipes => {
                let input = File::from(OwnedFd::from(child.stdin.take().expect("stdin is a pipe")));
                (input, File::from(OwnedFd::from(child.stdout.take().expect("stdout is a pipe"))), None)
            }
            Link::Pty(pty) => (pty.master.try_clone()?, pty.master, Some(pty.slave)),
        };
        let output = ConsoleReader { file: output, ended: ended.clone(), _slave: slave };
        Ok(Self { child, output: Some(output), input: Some(input), ended, messages, work })
    }

    /// What comes out of the serial line; can be taken once.
    pub fn take_output(&mut self) -> Option<ConsoleReader> {
        self.output.take()
    }

    /// What goes into the serial line; can be taken once.
    pub fn take_input(&mut self) -> Option<impl Write + Send + 'static> {
        self.input.take()
    }

    /// Where QEMU makes the socket of its monitor.
    #[must_use]
    pub fn monitor(&self) -> Option<PathBuf> {
        Some(self.work.as_ref()?.path().join(MONITOR))
    }

    /// What QEMU says of its CPUs' registers: of a machine that does nothing more, where it stands. Nothing if it does not answer, or is no QEMU.
    #[must_use]
    pub fn registers(&self) -> Vec<String> {
        let text = self.monitor().and_then(|path| ask_monitor(&path, "info registers -a").ok()).unwrap_or_default();
        let wanted =
            |line: &str| ["CPU#", "RAX=", "RSI=", "R8 =", "R12=", "RIP=", "CR0="].iter().any(|start| line.starts_with(start));
        text.lines().map(str::trim_end).filter(|line| wanted(line)).map(str::to_owned).collect()
    }

    /// The emulator's exit status, if it has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().ok().flatten();
        if status.is_some() {
            self.ended.store(true, Ordering::Release);
        }
        status
    }

    /// Ends the emulator.
    pub fn kill(&mut self) {
        if self.try_wait().is_none() {
            sys::kill_group(&self.child);
            let _ = self.child.wait();
        }
        self.ended.store(true, Ordering::Release);
    }

    /// All that the emulator wrote to its standard output and error.
    pub fn log(&self) -> Result<String> {
        let path = self.messages.first().context("this machine keeps no log")?;
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What the emulator itself said: its last lines.
    #[must_use]
    pub fn messages(&self) -> String {
        const LINES: usize = 40;
        let text: String =
            self.messages.iter().filter_map(|p| fs::read(p).ok()).map(|b| String::from_utf8_lossy(&b).into_owned()).collect();
        let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty() && !is_bochs_chatter(l)).collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

/// The answer of QEMU's monitor to a command.
fn ask_monitor(path: &Path, command: &str) -> io::Result<String> {
    const LIMIT: Duration = Duration::from_secs(5);
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(LIMIT))?;
    until_prompt(&mut stream)?;
    stream.write_all(format!("{command}\n").as_bytes())?;
    Ok(String::from_utf8_lossy(&until_prompt(&mut stream)?).into_owned())
}

/// What the monitor says until it waits for a command, or ends.
fn until_prompt(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while !bytes.ends_with(b"(qemu) ") {
        match stream.read(&mut buffer)? {
            0 => break,
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(bytes)
}

/// A line in Bochs' log that is no error, no panic and no register: `TIME`, the level's letter, the device in brackets, and the text.
fn is_bochs_chatter(line: &str) -> bool {
    if line.contains("] | ") {
        return false;
    }
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    rest.len() != line.len() && ["i[", "d["].iter().any(|level| rest.starts_with(level))
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

enum Link {
    Pipes,
    Pty(sys::Pty),
}

/// Reads the serial line until the emulator has ended and everything is read.
#[derive(Debug)]
pub struct ConsoleReader {
    file: File,
    ended: Arc<AtomicBool>,
    /// Held open, because a pseudo-terminal without any user reads as ended, also before its user has come.
    _slave: Option<OwnedFd>,
}

impl Read for ConsoleReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            // Looked at before the wait: what was written before the end is then still read.
            let ended = self.ended.load(Ordering::Acquire);
            if sys::wait_readable(&self.file.as_fd(), Duration::from_millis(50))? {
                return self.file.read(buf);
            }
            if ended {
                return Ok(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_machines_are_refused_by_what_is_impossible() {
        let tcg = Spec::new(Accel::Tcg, Vendor::Amd);
        let bochs = Spec::new(Accel::Bochs, Vendor::Intel);
        for (spec, word) in [
            (Spec { vendor: Vendor::Intel, ..tcg }, "VT-x"),
            (Spec { clock: Clock::Instructions, cpus: 2, ..tcg }, "--icount"),
            (Spec { clock: Clock::Instructions, accel: Accel::Kvm, ..tcg }, "--icount"),
            (Spec { firmware: Firmware::Uefi, ..bochs }, "--uefi"),
            (Spec { cpus: 0, ..tcg }, "CPU"),
            (Spec { memory: MemorySize::from_mib(4096), ..bochs }, "memory"),
        ] {
            let error = spec.check().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        tcg.check().unwrap();
        bochs.check().unwrap();
        Spec { vendor: Vendor::Amd, cpus: 2, clock: Clock::Instructions, ..bochs }.check().unwrap();
    }

    #[test]
    fn a_program_stands_in_for_a_machine() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "read line; echo got $line; exit 3"]);
        let mut machine = Machine::from_program(shell).unwrap();
        machine.take_input().unwrap().write_all(b"hello\n").unwrap();
        let mut text = String::new();
        let mut output = machine.take_output().unwrap();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(text, "got hello\n");
        let status = loop {
            if let Some(status) = machine.try_wait() {
                break status;
            }
        };
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn bochs_says_a_lot() {
        assert!(is_bochs_chatter("00517344442i[CPU0  ] CPU is in real mode (active)"));
        assert!(!is_bochs_chatter("00517344442i[CPU0  ] | EAX=36d7206e"));
        assert!(!is_bochs_chatter("00517344442p[CPU0  ] >>PANIC<< x"));
        assert!(!is_bochs_chatter("in[ can't open"));
    }

    #[test]
    fn commas_in_paths_reach_qemu() {
        assert_eq!(qemu_quote(Path::new("/a,b")).unwrap(), "/a,,b");
    }
}
