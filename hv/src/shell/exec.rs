//! Carries commands out, and prints what they show in xl's formats.

use super::{
    Question, Screen, Shell,
    command::{Command, DEBUG_KEYS, TriggerKind},
    operator::{GuestFlags, GuestInfo, HostInfo, Operator, OperatorError, Start, Trigger, VcpuActivity, VcpuInfo},
    verb::Verb,
};
use crate::cpumask::CpuMask;
use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::fmt::{self, Write as _};
use x86defs::{Duration, Time};

/// Why a command was not carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Failure {
    /// No guest has this name or id.
    UnknownGuest(String),
    /// What the host said about a guest, or another thing of this name.
    Operator { what: String, error: OperatorError },
    /// No boot module of this name; configurations that there are.
    UnknownConfig { name: String, configs: Vec<String> },
    /// More than the highest cap of this guest.
    CapTooHigh { cap: u32, most: u32 },
    /// Memory to put the text together cannot run out; a formatter can only fail by itself.
    Format,
}

impl From<fmt::Error> for Failure {
    fn from(_: fmt::Error) -> Self {
        Self::Format
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownGuest(word) => write!(f, "{word}: no guest has this name or id"),
            Self::Operator { what, error } => write!(f, "{what}: {error}"),
            Self::UnknownConfig { name, configs } if configs.is_empty() => {
                write!(f, "{name}: no boot module has this name, and none is a configuration (*.cfg)")
            }
            Self::UnknownConfig { name, configs } => {
                write!(f, "{name}: no boot module has this name; there are {}", configs.join(", "))
            }
            Self::CapTooHigh { cap, most } => write!(f, "cap {cap} is more than {most}, 100 for each vCPU"),
            Self::Format => f.write_str("the output could not be put together"),
        }
    }
}

/// The guest that a word stands for: an id, or else a name, rather of a guest that still runs.
pub(super) fn find(operator: &dyn Operator, word: &str) -> Result<GuestInfo, Failure> {
    let guests = operator.guests();
    let by_id = word.parse().ok().and_then(|id: u32| guests.iter().position(|guest| guest.id == id));
    let by_name = |ended| guests.iter().position(|guest| guest.name == word && guest.flags.ended() == ended);
    let at = by_id.or_else(|| by_name(false)).or_else(|| by_name(true));
    at.and_then(|at| guests.into_iter().nth(at)).ok_or_else(|| Failure::UnknownGuest(word.into()))
}

/// Those that words stand for, or all.
fn find_some(operator: &dyn Operator, words: &[&str]) -> Result<Vec<GuestInfo>, Failure> {
    if words.is_empty() { Ok(operator.guests()) } else { words.iter().map(|word| find(operator, word)).collect() }
}

impl Shell {
    pub(super) fn execute(&mut self, command: Command<'_>, operator: &dyn Operator) -> Result<(), Failure> {
        match command {
            Command::Help(None) => self.help(),
            Command::Help(Some(verb)) => self.help_on(verb),
            Command::List(word) => self.list(&find_some(operator, word.as_slice())?),
            Command::VcpuList(words) => self.vcpu_list(&find_some(operator, &words)?, operator),
            Command::Create { config, start, console } => create(operator, config, start, console),
            Command::Destroy(word) => act(operator, word, |id| operator.destroy(id)),
            Command::Pause(word) => act(operator, word, |id| operator.pause(id)),
            Command::Unpause(word) => act(operator, word, |id| operator.unpause(id)),
            Command::Shutdown(Some(word)) => act(operator, word, |id| operator.trigger(id, Trigger::Power)),
            Command::Shutdown(None) => {
                let running = operator.guests().into_iter().filter(|guest| !guest.flags.ended());
                let failures: Vec<Failure> =
                    running.filter_map(|guest| act_on(&guest, |id| operator.trigger(id, Trigger::Power)).err()).collect();
                // Each is tried, whatever became of the others.
                let mut screen = self.screen();
                failures.iter().try_for_each(|failure| writeln!(screen, "shutdown: {failure}"))?;
                Ok(())
            }
            Command::RebootGuest(word) => act(operator, word, |id| operator.reboot(id)),
            Command::RebootHost { force } => self.host_action(Question::Reset, force, operator),
            Command::PowerOff { force } => self.host_action(Question::PowerOff, force, operator),
            Command::Console(word) => act(operator, word, |id| operator.focus(id)),
            Command::Trigger { guest, kind, vcpu } => {
                let guest = find(operator, guest)?;
                let vcpu = vcpu.unwrap_or(0);
                let trigger = match kind {
                    TriggerKind::Nmi => Trigger::Nmi { vcpu },
                    TriggerKind::Power => Trigger::Power,
                    TriggerKind::Sleep => Trigger::Sleep,
                    TriggerKind::Reset => Trigger::Reset,
                };
                act_on(&guest, |id| {
                    check_vcpu(&guest, vcpu)?;
                    operator.trigger(id, trigger)
                })
            }
            Command::VcpuPin { guest, vcpu, cpus } => {
                let guest = find(operator, guest)?;
                act_on(&guest, |id| {
                    check_vcpu(&guest, vcpu.unwrap_or(0))?;
                    if cpus.and(CpuMask::first(operator.host().cpus)).is_empty() {
                        return Err(OperatorError::NoSuchCpus { cpus });
                    }
                    operator.pin(id, vcpu, &cpus)
                })
            }
            Command::ShowShares(word) => self.shares(&find_some(operator, word.as_slice())?),
            Command::SetShare { guest, weight, cap } => {
                let guest = find(operator, guest)?;
                let most = guest.vcpus.saturating_mul(100);
                if let Some(cap) = cap.filter(|&cap| cap > most) {
                    return Err(Failure::CapTooHigh { cap, most });
                }
                act_on(&guest, |id| operator.set_share(id, weight, cap))
            }
            Command::Dmesg { forget } => self.dmesg(forget, operator),
            Command::Info => self.info(operator),
            Command::Top => self.top(operator),
            Command::Uptime(words) => self.uptime(&words, operator),
            Command::DebugKeys(keys) => self.debug_keys(keys, operator),
        }
    }

    fn help(&mut self) -> Result<(), Failure> {
        let mut screen = self.screen();
        for verb in Verb::ALL {
            let entry = verb.entry();
            writeln!(screen, " {:<14} {}", entry.name, entry.summary)?;
        }
        writeln!(screen, "help VERB shows how to use a verb. Ctrl-a three times (conswitch=) switches to the guests and back.")?;
        Ok(())
    }

    fn help_on(&mut self, verb: Verb) -> Result<(), Failure> {
        let entry = verb.entry();
        let blank = if entry.usage.is_empty() { "" } else { " " };
        let mut screen = self.screen();
        writeln!(screen, "usage: {}{blank}{}\n{}", entry.name, entry.usage, entry.summary)?;
        Ok(())
    }

    fn list(&mut self, guests: &[GuestInfo]) -> Result<(), Failure> {
        let mut screen = self.screen();
        writeln!(screen, "Name                                        ID   Mem VCPUs\tState\tTime(s)")?;
        for guest in guests {
            // A PC's memory lacks the 128 KiB of its video window; the configuration's number is what people look for.
            let memory = guest.memory.div_ceil(1 << 20);
            let (flags, time) = (Letters(guest.flags), Tenths(guest.cpu_time).to_string());
            writeln!(screen, "{:<40} {:>5} {memory:>5} {:>5}     {flags}  {time:>8}", guest.name, guest.id, guest.vcpus)?;
        }
        Ok(())
    }

    fn vcpu_list(&mut self, guests: &[GuestInfo], operator: &dyn Operator) -> Result<(), Failure> {
        let cpus = operator.host().cpus;
        let mut screen = self.screen();
        writeln!(
            screen,
            "{:<32} {:>5} {:>5} {:>5} {:>5} {:>9} Affinity (Hard / Soft)",
            "Name", "ID", "VCPU", "CPU", "State", "Time(s)"
        )?;
        for guest in guests {
            for vcpu in operator.vcpus(guest.id) {
                let (cpu, state) = match (vcpu.activity, vcpu.cpu) {
                    (VcpuActivity::Offline, _) => ("-".into(), "--p"),
                    (VcpuActivity::Running, cpu) => (cpu_name(cpu), "r--"),
                    (VcpuActivity::Ready, cpu) => (cpu_name(cpu), "---"),
                    (VcpuActivity::Blocked, cpu) => (cpu_name(cpu), "-b-"),
                };
                let time = Tenths(vcpu.cpu_time).to_string();
                let hard = Affinity { mask: vcpu.affinity, cpus };
                writeln!(screen, "{:<32} {:>5} {:>5} {cpu:>5}   {state} {time:>9}  {hard} / all", guest.name, guest.id, vcpu.id)?;
            }
        }
        Ok(())
    }

    fn shares(&mut self, guests: &[GuestInfo]) -> Result<(), Failure> {
        let mut screen = self.screen();
        writeln!(screen, "{:<33} {:>4} {:>6} {:>4}", "Name", "ID", "Weight", "Cap")?;
        for guest in guests.iter().filter(|guest| !guest.flags.ended()) {
            writeln!(screen, "{:<33} {:>4} {:>6} {:>4}", guest.name, guest.id, guest.weight, guest.cap)?;
        }
        Ok(())
    }

    fn dmesg(&mut self, forget: bool, operator: &dyn Operator) -> Result<(), Failure> {
        let mut at = self.forgotten;
        let mut screen = self.screen();
        let mut buffer = [0; 512];
        let mut in_part = false;
        loop {
            let (count, next) = operator.log(at, &mut buffer);
            let mut bytes = buffer.get(..count).unwrap_or_default();
            // The oldest line may have lost its start.
            in_part |= at != 0 && next.saturating_sub(count as u64) != at;
            if in_part && let Some(end) = bytes.iter().position(|&b| b == b'\n') {
                bytes = bytes.get(end + 1..).unwrap_or_default();
                in_part = false;
            }
            if !in_part {
                screen.bytes(bytes);
            }
            if count == 0 || next <= at {
                break;
            }
            at = next;
        }
        if forget {
            self.forgotten = at;
        }
        Ok(())
    }

    fn info(&mut self, operator: &dyn Operator) -> Result<(), Failure> {
        let HostInfo { version, cmdline, cpu_model, virtualisation, cpus, tsc_hz, memory_total, memory_free, scheduler } =
            operator.host();
        let guests = operator.guests();
        let mut screen = self.screen();
        let mut line = |key: &str, value: &dyn fmt::Display| writeln!(screen, "{key:<23}: {value}");
        line("bulkhead_version", &version)?;
        line("cpu_model", &cpu_model)?;
        line("nr_cpus", &cpus)?;
        line("cpu_mhz", &format_args!("{}.{:03}", tsc_hz / 1_000_000, tsc_hz / 1_000 % 1_000))?;
        line("virt_caps", &format_args!("hvm hap ({virtualisation})"))?;
        line("total_memory", &(memory_total >> 20))?;
        line("free_memory", &(memory_free >> 20))?;
        line("bulkhead_scheduler", &scheduler)?;
        line("bulkhead_commandline", &cmdline)?;
        line("guests", &guests.len())?;
        line("vcpus", &guests.iter().map(|guest| u64::from(guest.vcpus)).sum::<u64>())?;
        line("uptime", &Uptime(Duration(operator.now().0)))?;
        Ok(())
    }

    fn top(&mut self, operator: &dyn Operator) -> Result<(), Failure> {
        let now = operator.now();
        let before = core::mem::take(&mut self.samples);
        let last = core::mem::replace(&mut self.sampled, now);
        let mut samples = Vec::new();
        let mut screen = self.screen();
        writeln!(screen, "{:<32} {:>5} {:>5} {:>6} {:>9} {:>9}", "Name", "ID", "VCPU", "CPU(%)", "Time(s)", "Exits/s")?;
        for guest in operator.guests() {
            // A guest that has been started since is measured from then on.
            let span = now.since(last.max(guest.started)).0.max(1);
            for VcpuInfo { id, cpu_time, exits, .. } in operator.vcpus(guest.id) {
                let found = before.iter().find(|sample| (sample.guest, sample.vcpu) == (guest.id, id));
                let (time_before, exits_before) = found.map_or((0, 0), |sample| (sample.cpu_time.0, sample.exits));
                samples.push(Sample { guest: guest.id, vcpu: id, cpu_time, exits });
                let share = per(cpu_time.0.saturating_sub(time_before), 1_000, span);
                let rate = per(exits.saturating_sub(exits_before), 1_000_000_000, span);
                let share = alloc::format!("{}.{}", share / 10, share % 10);
                let time = Tenths(cpu_time).to_string();
                writeln!(screen, "{:<32} {:>5} {id:>5} {share:>6} {time:>9} {rate:>9}", guest.name, guest.id)?;
            }
        }
        self.samples = samples;
        Ok(())
    }

    fn uptime(&mut self, words: &[&str], operator: &dyn Operator) -> Result<(), Failure> {
        let guests = find_some(operator, words)?;
        let now = operator.now();
        let mut screen = self.screen();
        writeln!(screen, "{:<33} {:>4} Uptime", "Name", "ID")?;
        if words.is_empty() {
            writeln!(screen, "{:<33} {:>4} {}", "(host)", "-", Uptime(now.since(Time(0))))?;
        }
        for guest in &guests {
            writeln!(screen, "{:<33} {:>4} {}", guest.name, guest.id, Uptime(now.since(guest.started)))?;
        }
        Ok(())
    }

    fn debug_keys(&mut self, keys: &str, operator: &dyn Operator) -> Result<(), Failure> {
        let mut screen = self.screen();
        for key in keys.chars() {
            if matches!(key, 'h' | '*') {
                writeln!(screen, " key '{key}' => this list")?;
                for (key, _, what) in DEBUG_KEYS {
                    writeln!(screen, " key '{key}' => {what}")?;
                }
                continue;
            }
            match DEBUG_KEYS.into_iter().find(|(k, ..)| *k == key) {
                None => writeln!(screen, "debug-keys: {key}: unknown key; h lists them")?,
                Some((_, debug, what)) => {
                    writeln!(screen, "'{key}' pressed -> {what}")?;
                    if let Err(error) = operator.debug(debug, &mut screen) {
                        writeln!(screen, "debug-keys: {key}: {error}")?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Switches the host off or restarts it, after a question if that would end guests.
    fn host_action(&mut self, action: Question, force: bool, operator: &dyn Operator) -> Result<(), Failure> {
        let guests = operator.guests();
        let running: Vec<&str> = guests.iter().filter(|guest| !guest.flags.ended()).map(|guest| guest.name.as_str()).collect();
        if force || running.is_empty() {
            action.act(operator);
            return Ok(());
        }
        self.question = Some(action);
        let (count, verb) = (running.len(), if running.len() == 1 { "guest runs" } else { "guests run" });
        writeln!(self.screen(), "{count} {verb}: {}", running.join(", "))?;
        Ok(())
    }

    pub(super) fn screen(&mut self) -> Screen<'_> {
        Screen(&mut self.out)
    }
}

/// What a vCPU had used up when `top` was called last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    guest: u32,
    vcpu: u32,
    cpu_time: Duration,
    exits: u64,
}

/// `amount` times `unit` in each `span`, at most what the type holds.
fn per(amount: u64, unit: u64, span: u64) -> u64 {
    u64::try_from(u128::from(amount) * u128::from(unit) / u128::from(span.max(1))).unwrap_or(u64::MAX)
}

fn act(operator: &dyn Operator, word: &str, action: impl Fn(u32) -> Result<(), OperatorError>) -> Result<(), Failure> {
    /// A guest that restarts has another number afterwards. It cannot do that so often.
    const TRIES: usize = 3;
    let mut guest = find(operator, word)?;
    for _ in 1..TRIES {
        match action(guest.id) {
            Err(OperatorError::NoSuchGuest) => guest = find(operator, word)?,
            result => return result.map_err(|error| Failure::Operator { what: guest.name, error }),
        }
    }
    act_on(&guest, action)
}

fn act_on(guest: &GuestInfo, action: impl FnOnce(u32) -> Result<(), OperatorError>) -> Result<(), Failure> {
    action(guest.id).map_err(|error| Failure::Operator { what: guest.name.clone(), error })
}

fn check_vcpu(guest: &GuestInfo, vcpu: u32) -> Result<(), OperatorError> {
    if vcpu < guest.vcpus { Ok(()) } else { Err(OperatorError::NoSuchVcpu { vcpu, vcpus: guest.vcpus }) }
}

fn create(operator: &dyn Operator, config: &str, start: Start, console: bool) -> Result<(), Failure> {
    let modules = operator.modules();
    let full = alloc::format!("{config}.cfg");
    let Some(name) = modules.iter().find(|name| **name == config).or_else(|| modules.iter().find(|name| **name == full)) else {
        let configs = modules.into_iter().filter(|name| name.ends_with(".cfg")).collect();
        return Err(Failure::UnknownConfig { name: config.into(), configs });
    };
    let failure = |error| Failure::Operator { what: name.clone(), error };
    let guest = operator.create(name, start).map_err(failure)?;
    if console {
        operator.focus(guest).map_err(failure)?;
    }
    Ok(())
}

fn cpu_name(cpu: Option<u32>) -> String {
    cpu.map_or_else(|| "-".into(), |cpu| cpu.to_string())
}

/// Six letters, as in `xl list`.
struct Letters(GuestFlags);

impl fmt::Display for Letters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (flag, letter) in [
            (GuestFlags::RUNNING, 'r'),
            (GuestFlags::BLOCKED, 'b'),
            (GuestFlags::PAUSED, 'p'),
            (GuestFlags::SHUTDOWN, 's'),
            (GuestFlags::CRASHED, 'c'),
            (GuestFlags::DYING, 'd'),
        ] {
            f.write_char(if self.0.contains(flag) { letter } else { '-' })?;
        }
        Ok(())
    }
}

/// Seconds with a digit after the point.
struct Tenths(Duration);

impl fmt::Display for Tenths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0.0 / 1_000_000_000, self.0.0 / 100_000_000 % 10)
    }
}

/// As `xl uptime` has it: `2 days,  3:04:05`.
struct Uptime(Duration);

impl fmt::Display for Uptime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.0 / 1_000_000_000;
        match seconds / 86_400 {
            0 => {}
            1 => f.write_str("1 day, ")?,
            days => write!(f, "{days} days, ")?,
        }
        write!(f, "{:>2}:{:02}:{:02}", seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60)
    }
}

/// A set of CPUs, `all` if it leaves out none that there is.
struct Affinity {
    mask: CpuMask,
    cpus: u32,
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let present = CpuMask::first(self.cpus);
        let mask = self.mask.and(present);
        if mask == present { f.write_str("all") } else { mask.fmt(f) }
    }
}
