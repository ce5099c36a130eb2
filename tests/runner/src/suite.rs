//! Runs the emulator tests of [`crate::list`], two machines at a time, many guests to a machine.

mod linux_jobs;

use std::{
    collections::{BTreeSet, VecDeque},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    bench, boots,
    budget::Budget,
    feed::Pace,
    flat,
    image::{Grub, Image, Modules},
    keyboard,
    lines::Event,
    linux,
    list::{self, Expect, GuestTest, LinuxTest, Platform, RefusalTest},
    machine::{Machine, Spec, Vendor},
    scenarios::{Kernels, Run, SCENARIOS, Scenario},
    script::Operator,
    session::{self, End, Mailbox, Message, Observer, Options, Outcome},
    shares::{SHARES, ShareTest},
    variants::{Kernel, VARIANTS, Variant, When},
};

/// What the tests run with.
#[derive(Clone, Debug)]
pub struct Assets {
    /// The hypervisor's ELF file.
    pub hypervisor: PathBuf,
    /// The test guest's ELF file; absent if no test needs it.
    pub guests: Option<PathBuf>,
    /// Kernel and initramfs of the default guest; absent if no test needs them.
    pub linux: Option<(PathBuf, Vec<u8>)>,
    /// The same of other Linuxes.
    pub others: Vec<(Kernel, PathBuf, Vec<u8>)>,
    /// The images of memtest86+; none if no test needs them.
    pub memtest: Vec<PathBuf>,
    pub grub: Grub,
    /// For the ISOs.
    pub work: PathBuf,
}

/// The result of one test.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Platform and test, as in `svm/qemu/cpuid-policy`.
    pub name: String,
    pub result: Result<(), Failure>,
    pub took: Duration,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub reason: String,
    /// What was on the console, as far as it belongs to the test.
    pub console: Vec<String>,
}

/// Some tests that share one machine.
#[derive(Clone, Debug)]
enum Job {
    Guests(Platform, Vec<GuestTest>),
    Together(Platform),
    Refusals(Platform, Vec<RefusalTest>),
    Linux(LinuxTest, Vec<&'static str>),
    Variant(Platform, Variant),
    Shares(Platform, ShareTest),
    Scenario(Platform, Scenario),
    Keyboard(Platform),
    Bench(Platform, Vendor, bench::Part),
}

/// Tests chosen from the list.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    jobs: Vec<Job>,
}

impl Plan {
    /// Those on `platforms` whose name contains `filter`, except that what takes long needs `long`.
    #[must_use]
    pub fn new(platforms: &[Platform], filter: &str, long: bool) -> Self {
        let mut jobs = Vec::new();
        for &platform in platforms {
            let wanted = |name: &str| test_name(platform, name).contains(filter);
            for linux in list::LINUX.iter().filter(|l| l.on == platform) {
                let checks: Vec<_> = linux::checks(linux).into_iter().filter(|c| wanted(c)).collect();
                if !checks.is_empty() {
                    jobs.push(Job::Linux(*linux, checks));
                }
            }
            for variant in VARIANTS.iter().filter(|v| wanted(v.name)) {
                let now = |(on, when): &(Platform, When)| *on == platform && (long || *when == When::Always);
                if variant.on.iter().any(now) {
                    jobs.push(Job::Variant(platform, *variant));
                }
            }
            let guests: Vec<_> = list::GUESTS.iter().filter(|t| t.on.contains(&platform) && wanted(t.name)).copied().collect();
            if !guests.is_empty() {
                jobs.push(Job::Guests(platform, guests));
            }
            if list::TOGETHER_ON.contains(&platform) && wanted(TOGETHER) {
                jobs.push(Job::Together(platform));
            }
            let shares = SHARES.iter().filter(|t| t.on.contains(&platform) && wanted(t.name));
            jobs.extend(shares.map(|t| Job::Shares(platform, *t)));
            let now = |t: &&Scenario| long || t.when() == When::Always;
            let scenarios = SCENARIOS.iter().filter(now).filter(|t| t.on.contains(&platform) && wanted(t.name));
            jobs.extend(scenarios.map(|t| Job::Scenario(platform, *t)));
            if keyboard::ON.contains(&platform) && wanted(keyboard::NAME) {
                jobs.push(Job::Keyboard(platform));
            }
            for vendor in [Vendor::Amd, Vendor::Intel] {
                let parts = bench::Part::ALL.into_iter().filter(|p| bench::platform(vendor) == platform && wanted(p.test()));
                jobs.extend(parts.map(|part| Job::Bench(platform, vendor, part)));
            }
            if list::REFUSALS_ON.contains(&platform) {
                let refusals: Vec<_> = list::REFUSALS.iter().filter(|t| wanted(&refusal_name(t))).copied().collect();
                if !refusals.is_empty() {
                    jobs.push(Job::Refusals(platform, refusals));
                }
            }
        }
        // The longest first, so that no long one is left alone at the end.
        jobs.sort_by_key(|job| std::cmp::Reverse(job.weight()));
        Self { jobs }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Every test's name.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.jobs.iter().flat_map(Job::names).collect()
    }

    #[must_use]
    pub fn specs(&self) -> Vec<Spec> {
        self.jobs.iter().map(|job| job.platform().spec()).collect()
    }

    #[must_use]
    pub fn needs_guests(&self) -> bool {
        self.jobs.iter().any(|job| !matches!(job, Job::Linux(..) | Job::Variant(..)))
    }

    #[must_use]
    pub fn needs_linux(&self) -> bool {
        self.jobs.iter().any(|job| match job {
            Job::Linux(..) | Job::Bench(_, _, bench::Part::Boot) => true,
            Job::Variant(_, variant) => variant.kernel == Kernel::Cloud,
            Job::Scenario(_, test) => test.kernels == Kernels::AndLinux,
            _ => false,
        })
    }

    /// True if a test needs this kernel.
    #[must_use]
    pub fn needs(&self, kernel: Kernel) -> bool {
        self.jobs.iter().any(|job| matches!(job, Job::Variant(_, variant) if variant.kernel == kernel))
    }

    #[must_use]
    pub fn needs_memtest(&self) -> bool {
        self.jobs.iter().any(|job| matches!(job, Job::Scenario(_, test) if test.kernels == Kernels::Memtest))
    }

    /// Runs the tests, `machines` at a time; calls `report` with each result as it comes.
    pub fn run(&self, assets: &Assets, machines: usize, mut report: impl FnMut(Report)) {
        let queue = Mutex::new(VecDeque::from(self.jobs.clone()));
        let (sender, receiver): (Sender<Report>, Receiver<Report>) = channel();
        thread::scope(|scope| {
            for _ in 0..machines.max(1) {
                let (queue, sender) = (&queue, sender.clone());
                scope.spawn(move || {
                    loop {
                        let Some(job) = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else { return };
                        job.run(assets, &sender);
                    }
                });
            }
            drop(sender);
            for result in receiver {
                report(result);
            }
        });
    }
}

const TOGETHER: &str = "guests-together";

fn test_name(platform: Platform, name: &str) -> String {
    format!("{}/{name}", platform.label())
}

fn refusal_name(test: &RefusalTest) -> String {
    format!("refused-{}", test.name)
}

/// The options of every test's hypervisor, besides how guests start. The offset counts for guests with `localtime` alone.
pub(crate) const OPTIONS: &str = "com1=115200,8n1 console=com1 on_last_guest=poweroff utc_offset=-03:30";

impl Job {
    const fn platform(&self) -> Platform {
        match self {
            Self::Guests(platform, _)
            | Self::Together(platform)
            | Self::Refusals(platform, _)
            | Self::Shares(platform, _)
            | Self::Scenario(platform, _)
            | Self::Variant(platform, _)
            | Self::Keyboard(platform)
            | Self::Bench(platform, ..) => *platform,
            Self::Linux(test, _) => test.on,
        }
    }

    fn weight(&self) -> u32 {
        let units = match self {
            Self::Guests(_, tests) => 2 + tests.len() as u32,
            Self::Together(_) | Self::Refusals(..) | Self::Keyboard(_) | Self::Bench(_, _, bench::Part::Operations) => 2,
            Self::Shares(_, test) => 10 * test.cpus,
            Self::Scenario(_, test) => {
                if !matches!(test.kernels, Kernels::TestGuest) {
                    100
                } else {
                    10 * test.cpus
                }
            }
            Self::Linux(..) | Self::Variant(..) | Self::Bench(_, _, bench::Part::Boot) => 100,
        };
        self.platform().spec().slowness() * units
    }

    fn names(&self) -> Vec<String> {
        let platform = self.platform();
        match self {
            Self::Guests(_, tests) => tests.iter().map(|t| test_name(platform, t.name)).collect(),
            Self::Together(_) => vec![test_name(platform, TOGETHER)],
            Self::Shares(_, test) => vec![test_name(platform, test.name)],
            Self::Scenario(_, test) => vec![test_name(platform, test.name)],
            Self::Variant(_, variant) => vec![test_name(platform, variant.name)],
            Self::Keyboard(_) => vec![test_name(platform, keyboard::NAME)],
            Self::Bench(_, _, part) => vec![test_name(platform, part.test())],
            Self::Refusals(_, tests) => tests.iter().map(|t| test_name(platform, &refusal_name(t))).collect(),
            Self::Linux(_, checks) => checks.iter().map(|c| test_name(platform, c)).collect(),
        }
    }

    fn run(&self, assets: &Assets, sender: &Sender<Report>) {
        let start = Instant::now();
        let result = match self {
            Self::Guests(platform, tests) => run_guests(assets, *platform, tests, sender),
            Self::Together(platform) => run_together(assets, *platform, sender),
            Self::Shares(platform, test) => run_shares(assets, *platform, test, sender),
            Self::Scenario(platform, test) => run_scenario(assets, *platform, test, sender),
            Self::Keyboard(platform) => run_keyboard(assets, *platform, sender),
            Self::Bench(platform, vendor, part) => run_bench(assets, *platform, *vendor, *part, sender),
            Self::Refusals(platform, tests) => run_refusals(assets, *platform, tests, sender),
            Self::Linux(test, checks) => linux_jobs::run(assets, *test, checks, sender),
            Self::Variant(platform, variant) => linux_jobs::run_variant(assets, *platform, variant, sender),
        };
        // The machine could not even be started.
        if let Err(error) = result {
            for name in self.names() {
                let failure = Failure { reason: format!("{error:#}"), console: Vec::new() };
                let _ = sender.send(Report { name, result: Err(failure), took: start.elapsed() });
            }
        }
    }
}

/// Boots an image on a platform's machine and follows it.
pub(crate) fn boot(
    assets: &Assets,
    spec: &Spec,
    autostart: &str,
    modules: Modules,
    input: &str,
    limits: Limits,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let mailbox = Mailbox::default();
    let _ = mailbox.sender.send(Message::Input(input.as_bytes().to_vec()));
    boot_with(assets, spec, &format!("autostart={autostart}"), modules, mailbox, limits, observer)
}

/// The same, with hypervisor options, and whoever writes to the mailbox as operator.
fn boot_with(
    assets: &Assets,
    spec: &Spec,
    options: &str,
    modules: Modules,
    mailbox: Mailbox,
    limits: Limits,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let iso = assets.work.join(format!("test{}.iso", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let image =
        Image { hypervisor: assets.hypervisor.clone(), options: format!("{OPTIONS} {options}"), modules, ..Image::default() };
    image.write(&assets.grub, &iso)?;
    let mut machine = Machine::start(spec, &iso)?;
    let options = Options {
        timeout: limits.all,
        stall: limits.stall,
        grace: Duration::from_secs(2) + spec.slowness() * Duration::from_millis(250),
        pace: Pace::AtPrompt { silence: Duration::from_secs(30) + spec.slowness() * Duration::from_secs(3) },
    };
    let outcome = session::run(&mut machine, mailbox, &options, observer);
    let _ = std::fs::remove_file(iso);
    outcome
}

/// Times after which a machine is given up. Far more than is needed, because the machine that we run on may be slow and busy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    all: Option<Duration>,
    stall: Option<Duration>,
}

impl Limits {
    /// For a guest case: that long between two events.
    pub(crate) fn between_events(spec: &Spec) -> Self {
        Self { all: None, stall: Some(Duration::from_secs(60) + spec.slowness() * Duration::from_secs(4)) }
    }

    /// For all of something that may be silent for long.
    pub(crate) fn for_long(spec: &Spec) -> Self {
        Self { all: Some(Duration::from_secs(240) + spec.slowness() * Duration::from_secs(24)), stall: None }
    }
}

/// Writes down the console as plain lines.
#[derive(Default)]
pub(crate) struct Record {
    pub(crate) lines: Vec<String>,
}

impl Observer for Record {
    fn line(&mut self, line: &str, _: Option<&Event>) {
        self.lines.push(line.to_owned());
    }
}

/// Follows guests that run one after another, and reports each as it ends.
struct Sequence<'a> {
    platform: Platform,
    tests: &'a [GuestTest],
    sender: &'a Sender<Report>,
    /// The names of the tests with a result.
    done: BTreeSet<&'static str>,
    /// The one that runs.
    current: Option<&'static str>,
    since: Instant,
    /// The console since the last result.
    lines: Vec<String>,
}

impl Sequence<'_> {
    fn find(&self, guest: &str) -> Option<GuestTest> {
        self.tests.iter().find(|t| t.name == guest).copied()
    }

    fn report(&mut self, test: &'static str, result: Result<(), String>) {
        if !self.done.insert(test) {
            return;
        }
        self.current = None;
        let console = std::mem::take(&mut self.lines);
        let result = result.map_err(|reason| Failure { reason, console });
        let took = self.since.elapsed();
        self.since = Instant::now();
        let _ = self.sender.send(Report { name: test_name(self.platform, test), result, took });
    }
}

impl Observer for Sequence<'_> {
    fn line(&mut self, line: &str, event: Option<&Event>) {
        self.lines.push(line.to_owned());
        match event {
            Some(Event::Banner(_)) => self.lines.drain(..self.lines.len() - 1).for_each(drop),
            Some(Event::Started { guest }) => {
                self.current = self.find(guest).map(|t| t.name);
                self.since = Instant::now();
            }
            Some(Event::Ended { guest, how }) => {
                if let Some(test) = self.find(guest) {
                    self.report(test.name, test.expect.check(how));
                }
            }
            Some(Event::Refused { guest }) => {
                if let Some(test) = self.find(guest.strip_suffix(".cfg").unwrap_or(guest)) {
                    self.report(test.name, Err("the hypervisor refused its configuration".into()));
                }
            }
            _ => {}
        }
    }
}

/// Runs guest cases one after another in as few boots as possible: if one takes the machine down, it has failed and the others go on in a
/// new one.
fn run_guests(assets: &Assets, platform: Platform, tests: &[GuestTest], sender: &Sender<Report>) -> Result<()> {
    let spec = platform.spec();
    let mut left: Vec<GuestTest> = tests.to_vec();
    while !left.is_empty() {
        let mut modules = Modules::default();
        add_guest_kernel(assets, &mut modules)?;
        if left.iter().any(|test| test.kernel == list::FLAT_KERNEL) {
            add_flat_guest_kernel(assets, &mut modules)?;
        }
        for test in &left {
            modules.add_bytes(&format!("{}.cfg", test.name), list::guest_config(test.name).into_bytes());
        }
        let batch = left.clone();
        let mut sequence = Sequence {
            platform,
            tests: &batch,
            sender,
            done: BTreeSet::new(),
            current: None,
            since: Instant::now(),
            lines: Vec::new(),
        };
        let limits = Limits::between_events(&spec);
        let outcome = boot(assets, &spec, "sequential", modules, "", limits, &mut sequence)?;
        let end = outcome.end.to_string();
        if let Some(culprit) = sequence.current {
            sequence.report(culprit, Err(format!("it did not end: {end}")));
        } else if sequence.done.is_empty() || matches!(outcome.end, End::AllEnded) {
            // Another boot would not do better.
            let lines = sequence.lines.clone();
            for test in &batch {
                sequence.lines.clone_from(&lines);
                sequence.report(test.name, Err(format!("it never started: {end}")));
            }
        }
        let done = sequence.done;
        left.retain(|t| !done.contains(t.name));
    }
    Ok(())
}

fn guest_kernel(assets: &Assets) -> Result<Vec<u8>> {
    let path = assets.guests.as_ref().context("the test guest was not built")?;
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The module's file is called as cargo called it; configurations name the module.
pub(crate) fn add_guest_kernel(assets: &Assets, modules: &mut Modules) -> Result<()> {
    modules.add_bytes(list::GUEST_KERNEL, guest_kernel(assets)?);
    Ok(())
}

fn add_flat_guest_kernel(assets: &Assets, modules: &mut Modules) -> Result<()> {
    let (_, image) = flat::flatten(&guest_kernel(assets)?).context("the test guest cannot be made flat")?;
    modules.add_bytes(list::FLAT_KERNEL, image);
    Ok(())
}

fn run_together(assets: &Assets, platform: Platform, sender: &Sender<Report>) -> Result<()> {
    let start = Instant::now();
    let spec = platform.spec();
    let mut modules = Modules::default();
    add_guest_kernel(assets, &mut modules)?;
    for case in list::TOGETHER {
        modules.add_bytes(&format!("{case}.cfg"), list::guest_config(case).into_bytes());
    }
    let mut record = Record::default();
    let outcome = boot(assets, &spec, "parallel", modules, "", Limits::between_events(&spec), &mut record)?;
    let result = check_together(&outcome).map_err(|reason| Failure { reason, console: record.lines });
    let _ = sender.send(Report { name: test_name(platform, TOGETHER), result, took: start.elapsed() });
    Ok(())
}

fn run_shares(assets: &Assets, platform: Platform, test: &ShareTest, sender: &Sender<Report>) -> Result<()> {
    let start = Instant::now();
    let spec = test.spec(platform);
    let mut modules = Modules::default();
    add_guest_kernel(assets, &mut modules)?;
    for (n, worker) in test.workers.iter().enumerate() {
        let name = ShareTest::guest(n);
        let config = list::guest_config_of(&name, &format!("work ms={} marks={}", test.ms, test.marks));
        let config = format!("{config}cpu_weight = {}\ncap = {}\n", worker.weight, worker.cap);
        modules.add_bytes(&format!("{name}.cfg"), config.into_bytes());
    }
    let mut record = Record::default();
    let outcome = boot(assets, &spec, "parallel", modules, "", Limits::for_long(&spec), &mut record)?;
    let result = match outcome.end {
        End::AllEnded => test.check(&record.lines),
        ref end => Err(end.to_string()),
    };
    let result = result.map_err(|reason| Failure { reason, console: record.lines });
    let _ = sender.send(Report { name: test_name(platform, test.name), result, took: start.elapsed() });
    Ok(())
}

fn run_scenario(assets: &Assets, platform: Platform, test: &Scenario, sender: &Sender<Report>) -> Result<()> {
    let start = Instant::now();
    let spec = test.spec(platform);
    let mut modules = Modules::default();
    add_guest_kernel(assets, &mut modules)?;
    if test.kernels == Kernels::AndLinux {
        let (kernel, initramfs) = assets.linux.as_ref().context("there is no Linux")?;
        modules.add_bytes("vmlinuz", std::fs::read(kernel)?);
        modules.add_bytes("initrd.img", initramfs.clone());
    }
    if test.kernels == Kernels::Memtest {
        for image in &assets.memtest {
            modules.add_file(image);
        }
    }
    for (name, config) in (test.guests)() {
        modules.add_bytes(&format!("{name}.cfg"), config.into_bytes());
    }
    let mailbox = Mailbox::default();
    let mut operator = Operator::new((test.script)(platform), mailbox.sender.clone());
    let options = format!("autostart={} {}", test.autostart, test.options);
    let mut limits = Limits::for_long(&spec);
    if test.is_long {
        limits.all = limits.all.map(|limit| 10 * limit);
    }
    if test.kernels == Kernels::AndLinux {
        // Several times as long as one Linux.
        limits.all = limits.all.map(|limit| 3 * limit);
    }
    let outcome = boot_with(assets, &spec, &options, modules, mailbox, limits, &mut operator)?;
    let result = match outcome.end {
        End::AllEnded => (test.check)(&Run { platform, outcome: &outcome, lines: &operator.lines }),
        ref end => Err(format!("{end}; the operator waits for {:?}", operator.waits_for())),
    };
    let console = operator.lines.into_iter().map(|(part, line)| format!("{part:<8}{line}")).collect();
    let result = result.map_err(|reason| Failure { reason, console });
    let _ = sender.send(Report { name: test_name(platform, test.name), result, took: start.elapsed() });
    Ok(())
}

fn run_keyboard(assets: &Assets, platform: Platform, sender: &Sender<Report>) -> Result<()> {
    let start = Instant::now();
    let spec = platform.spec();
    let mut modules = Modules::default();
    add_guest_kernel(assets, &mut modules)?;
    let config = list::guest_config_of(keyboard::GUEST, keyboard::CASE);
    modules.add_bytes(&format!("{}.cfg", keyboard::GUEST), config.into_bytes());
    let mut typist = keyboard::Typist::default();
    // Of options that come twice, the later one counts.
    let options = format!("parallel {}", keyboard::OPTIONS);
    let outcome = boot(assets, &spec, &options, modules, "", Limits::between_events(&spec), &mut typist)?;
    let result = keyboard::check(&outcome).map_err(|reason| Failure { reason, console: typist.lines });
    let _ = sender.send(Report { name: test_name(platform, keyboard::NAME), result, took: start.elapsed() });
    Ok(())
}

fn run_bench(assets: &Assets, platform: Platform, vendor: Vendor, part: bench::Part, sender: &Sender<Report>) -> Result<()> {
    let start = Instant::now();
    let values = match part {
        bench::Part::Operations => bench::measure(assets, vendor, "")?,
        bench::Part::Boot => boots::measure(assets, vendor)?.figures,
    };
    let wrong = Budget::read()?.check(vendor, part, &values);
    let result = if wrong.is_empty() { Ok(()) } else { Err(Failure { reason: wrong.join("\n"), console: Vec::new() }) };
    let _ = sender.send(Report { name: test_name(platform, part.test()), result, took: start.elapsed() });
    Ok(())
}

fn check_together(outcome: &Outcome) -> Result<(), String> {
    if !matches!(outcome.end, End::AllEnded) {
        return Err(outcome.end.to_string());
    }
    for case in list::TOGETHER {
        let test = list::GUESTS.iter().find(|t| t.name == *case).ok_or_else(|| format!("no case {case}"))?;
        let (_, how) = outcome.ends().find(|(guest, _)| guest == case).ok_or_else(|| format!("{case} never ended"))?;
        test.expect.check(how).map_err(|reason| format!("{case} {reason}"))?;
    }
    // All had started before the first ended: else they did not run at the same time.
    let started = outcome.events.iter().take_while(|e| !matches!(e, Event::Ended { .. }));
    let count = started.filter(|e| matches!(e, Event::Started { .. })).count();
    if count == list::TOGETHER.len() { Ok(()) } else { Err(format!("only {count} guests ran at the same time")) }
}

fn run_refusals(assets: &Assets, platform: Platform, tests: &[RefusalTest], sender: &Sender<Report>) -> Result<()> {
    let start = Instant::now();
    let spec = platform.spec();
    let mut modules = Modules::default();
    add_guest_kernel(assets, &mut modules)?;
    modules.add_bytes(list::GARBAGE, b"This is no kernel, however long one looks at it.\n".repeat(100));
    for test in tests {
        modules.add_bytes(&format!("{}.cfg", test.name), test.config.into());
    }
    let survivor = list::REFUSALS_SURVIVOR;
    modules.add_bytes(&format!("{survivor}.cfg"), list::guest_config(survivor).into_bytes());
    let mut record = Record::default();
    let outcome = boot(assets, &spec, "sequential", modules, "", Limits::between_events(&spec), &mut record)?;
    let mut console = record.lines;
    for test in tests {
        // All have the same console: once is enough.
        let fail = |reason| Failure { reason, console: std::mem::take(&mut console) };
        let result = check_refusal(test, &outcome).map_err(fail);
        let _ = sender.send(Report { name: test_name(platform, &refusal_name(test)), result, took: start.elapsed() });
    }
    Ok(())
}

fn check_refusal(test: &RefusalTest, outcome: &Outcome) -> Result<(), String> {
    let module = format!("{}.cfg", test.name);
    let messages: Vec<(Option<u32>, &str)> = outcome
        .events
        .iter()
        .filter_map(|e| match e {
            Event::BadConfig { file, line, what } if *file == module => Some((*line, what.as_str())),
            _ => None,
        })
        .collect();
    let right = |(line, what): &(Option<u32>, &str)| {
        line.is_none_or(|l| l == test.line) && what.starts_with(&format!("{}: ", test.key)) && what.contains(test.reason)
    };
    if !messages.iter().any(right) {
        let wanted = format!("{module}:{}: {}: ...{}...", test.line, test.key, test.reason);
        return Err(format!("expected the message {wanted}; found {messages:?} ({})", outcome.end));
    }
    // By its own name if that could be read, else by the module's.
    let names = [module.as_str(), test.config.split('"').nth(1).unwrap_or_default()];
    if !outcome.events.iter().any(|e| matches!(e, Event::Refused { guest } if names.contains(&guest.as_str()))) {
        return Err("no line says that the guest was refused".into());
    }
    let survivor = outcome.ends().find(|(guest, _)| *guest == list::REFUSALS_SURVIVOR);
    match survivor {
        Some((_, how)) => Expect::Pass.check(how).map_err(|reason| format!("the good guest beside it {reason}")),
        None => Err(format!("the good guest beside it did not run: {}", outcome.end)),
    }
}

/// A folder for ISOs in `cache`.
pub fn work_folder(cache: &Path) -> Result<tempfile::TempDir> {
    std::fs::create_dir_all(cache)?;
    tempfile::tempdir_in(cache).context("cannot make a working folder")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_hold_what_was_asked_for() {
        let all = Plan::new(&Platform::ALL, "", false);
        for name in [
            "svm/icount/nmi",
            "vmx/bochs/nmi",
            "svm/bochs/nmi",
            "svm/qemu/refused-unknown-key",
            "vmx/bochs/linux-dmesg",
            "svm/uefi/linux-shell",
            "svm/qemu/linux-smp-cpus",
            "svm/qemu/linux-multi-cpus",
            "vmx/bochs/linux-multi-cpus",
            "svm/qemu/three-guests",
            "svm/icount/bench-budget",
            "svm/icount/bench-boot",
            "vmx/bochs/bench-budget",
            "vmx/bochs/bench-boot",
        ] {
            assert!(all.names().iter().any(|n| n == name), "{name}");
        }
        assert!(all.needs_guests() && all.needs_linux());
        let names = all.names();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "names are unique");

        assert!(!names.iter().any(|n| n == "vmx/bochs/linux-686"));
        let long = Plan::new(&[Platform::VmxBochs], "linux-686", true);
        assert_eq!(long.names(), ["vmx/bochs/linux-686"]);
        assert!(long.needs(Kernel::Pae) && !long.needs(Kernel::Unpacked) && !long.needs_linux());

        let one = Plan::new(&[Platform::VmxBochs], "string-io", false);
        assert_eq!(one.names(), ["vmx/bochs/string-io"]);
        assert!(!one.needs_linux());
        assert!(Plan::new(&Platform::ALL, "no such test", false).is_empty());
        assert_eq!(Plan::new(&Platform::ALL, "svm/uefi/linux-poweroff", false).names(), ["svm/uefi/linux-poweroff"]);
    }

    fn outcome(lines: &[&str], end: End) -> Outcome {
        Outcome { end, events: lines.iter().map(|l| Event::parse(&format!("(BH) {l}")).unwrap()).collect() }
    }

    #[test]
    fn a_sequence_reports_each_guest_with_its_own_output() {
        let (sender, receiver) = channel();
        let tests: Vec<GuestTest> = list::GUESTS[..3].to_vec();
        let [first, second, third] = [tests[0].name, tests[1].name, tests[2].name];
        let mut sequence = Sequence {
            platform: Platform::SvmQemu,
            tests: &tests,
            sender: &sender,
            done: BTreeSet::new(),
            current: None,
            since: Instant::now(),
            lines: Vec::new(),
        };
        for line in [
            "firmware".to_owned(),
            "(BH) Bulkhead 0".into(),
            format!("(BH) guest {third}.cfg: refused"),
            format!("(BH) guest {first}: started"),
            "one".into(),
            format!("(BH) guest {first}: ended: debug-exit status 33"),
            format!("(BH) guest {second}: started"),
            "two".into(),
            format!("(BH) guest {second}: ended: debug-exit status 35"),
        ] {
            sequence.line(&line, Event::parse(&line).as_ref());
        }
        let reports: Vec<Report> = receiver.try_iter().collect();
        assert_eq!(reports.iter().map(|r| r.result.is_ok()).collect::<Vec<_>>(), [false, true, false]);
        assert_eq!(reports[0].result.as_ref().unwrap_err().console.len(), 2);
        let failure = reports[2].result.as_ref().unwrap_err();
        assert!(failure.console.iter().any(|l| l == "two") && !failure.console.iter().any(|l| l == "one"), "{failure:?}");
        assert_eq!(sequence.current, None);
    }

    #[test]
    fn a_refusal_must_name_line_key_and_reason_and_harm_nobody_else() {
        let test = RefusalTest { name: "x", config: "name = \"n\"\nfoo = 1\n", line: 2, key: "foo", reason: "unknown" };
        let good =
            ["config x.cfg:2: foo: unknown key", "guest x.cfg: refused", "guest cpuid-policy: ended: debug-exit status 33"];
        assert_eq!(check_refusal(&test, &outcome(&good, End::AllEnded)), Ok(()));
        for (at, line) in [
            (0, "config x.cfg:3: foo: unknown key"),
            (0, "config x.cfg:2: bar: unknown key"),
            (0, "config x.cfg:2: foo: bad value"),
            (0, "config y.cfg:2: foo: unknown key"),
            (1, "guest y: refused"),
            (2, "guest cpuid-policy: ended: reboot"),
        ] {
            let mut bad = good;
            bad[at] = line;
            assert!(check_refusal(&test, &outcome(&bad, End::AllEnded)).is_err(), "{line}");
        }
    }

    #[test]
    fn guests_together_must_overlap() {
        let starts: Vec<String> = list::TOGETHER.iter().map(|c| format!("guest {c}: started")).collect();
        let end = |case: &str| match list::GUESTS.iter().find(|t| t.name == case).unwrap().expect {
            Expect::Pass => "debug-exit status 33".to_owned(),
            Expect::Status(s) => format!("debug-exit status {s}"),
            Expect::Crash(words) => format!("crash: {words}"),
            Expect::Reboot => "reboot".into(),
            Expect::Poweroff => "poweroff".into(),
        };
        let ends: Vec<String> = list::TOGETHER.iter().map(|c| format!("guest {c}: ended: {}", end(c))).collect();
        let lines: Vec<&str> = starts.iter().chain(&ends).map(String::as_str).collect();
        assert_eq!(check_together(&outcome(&lines, End::AllEnded)), Ok(()));
        let one_by_one: Vec<&str> = starts.iter().zip(&ends).flat_map(|(s, e)| [s.as_str(), e.as_str()]).collect();
        assert!(check_together(&outcome(&one_by_one, End::AllEnded)).is_err());
        assert!(check_together(&outcome(&lines[..lines.len() - 1], End::AllEnded)).is_err());
        assert!(check_together(&outcome(&lines, End::Panic("x".into()))).is_err());
    }
}
