//! A guest: its configuration, memory, board and console. Its vCPUs belong to whoever runs them.

use crate::{
    acpi,
    board::{Board, BoardConfig, SERIAL_PORTS},
    clock::Clock,
    config::{ConfigError, CpuidError, GuestConfig, Key, Reason, Serial, TscMode},
    console::{Console, GuestConsole},
    layout,
    loader::{self, LoadRequest, Ramdisk},
    log,
    run::Module,
    vcpu::{
        CpuidPolicy, CrashReason, MsrState, Partition, VirtCpu, Xcr0Policy,
        features::{Features, Word},
    },
};
use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};
use core::{
    fmt,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};
use devices::{debugcon::LineBuffer, lapic::LocalApic};
use spin::Mutex;
use x86defs::{Efer, GuestMemory, GuestMemoryExt, Platform, Time, Vcpu, VcpuConfig, VcpuState, Width};

/// How a guest ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// ACPI S5.
    PowerOff,
    /// A reset by port 0xCF9, 0x92 or the keyboard controller.
    Reboot,
    /// A byte written to the debug-exit port; this is (byte << 1) | 1.
    DebugExit(u16),
    Crash(CrashReason),
    /// By the operator.
    Destroyed,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => write!(f, "poweroff"),
            Self::Reboot => write!(f, "reboot"),
            Self::DebugExit(status) => write!(f, "debug-exit status {status}"),
            Self::Crash(reason) => write!(f, "crash: {reason}"),
            Self::Destroyed => write!(f, "destroyed"),
        }
    }
}

/// Everything that a guest is built from, and rebuilt after a reboot.
#[derive(Debug)]
pub struct Blueprint {
    pub config: GuestConfig,
    kernel: &'static [u8],
    kind: loader::Kind,
    ramdisk: Option<&'static [u8]>,
}

impl Blueprint {
    /// Finds the modules that a configuration names, and looks whether the kernel is one.
    ///
    /// # Errors
    /// A module that is not there, or a kernel that is no kernel.
    pub fn new(config: GuestConfig, modules: &[Module]) -> Result<Self, ConfigError> {
        let find = |key, name: &str| {
            let found = modules.iter().find(|m| m.name == name).map(|m| m.data);
            found.ok_or_else(|| config.error(key, Reason::NoSuchModule { name: name.into() }))
        };
        let kernel = find(Key::Kernel, &config.kernel)?;
        let ramdisk = match &config.ramdisk {
            Some(name) => Some(find(Key::Ramdisk, name)?),
            None => None,
        };
        let kind = loader::detect(kernel, config.kernel_format).map_err(|what| {
            let error = loader::LoadError::NotAKernel(what);
            config.error(error.key(), Reason::Load(error))
        })?;
        if let Some(port) = config.isa_debug_exit
            && let Some(port) = Board::claims(port)
        {
            return Err(config.error(Key::IsaDebugExit, Reason::PortInUse { port }));
        }
        Ok(Self { config, kernel, kind, ramdisk })
    }

    /// What kind of kernel it is, and which version if it says so: a Linux, or something else that is started like one.
    #[must_use]
    pub fn kernel_kind(&self) -> String {
        match loader::linux_version(self.kernel).filter(|_| self.kind == loader::Kind::Linux) {
            None => format!("{}", self.kind),
            Some(version) if version.starts_with(|c: char| c.is_ascii_digit()) => {
                format!("Linux {}", version.split(' ').next().unwrap_or(version))
            }
            Some(version) => version.into(),
        }
    }

    /// Puts the kernel and what belongs to it into the guest's RAM, and gives the state in which the boot processor enters it.
    ///
    /// # Errors
    /// Something does not fit, or the kernel is damaged.
    pub fn load<M: GuestMemory + ?Sized>(&self, memory: &M) -> Result<VcpuState, ConfigError> {
        let load = |error: loader::LoadError| self.config.error(error.key(), Reason::Load(error));
        let tables = acpi::build(&acpi::AcpiInput {
            vcpus: self.config.vcpus,
            coms: core::array::from_fn(|n| n == 0 || has_port(&self.config, n)),
            hpet: self.config.hpet,
        });
        tables.write_to(memory).map_err(|outside| load(outside.into()))?;
        let request = LoadRequest {
            kernel: self.kernel,
            format: self.config.kernel_format,
            ramdisk: self.ramdisk.map(|data| Ramdisk { name: self.config.ramdisk.as_deref().unwrap_or_default(), data }),
            cmdline: &self.config.cmdline,
            rsdp: tables.rsdp,
        };
        loader::load(memory, &request).map_err(load)
    }
}

/// What others may know of a vCPU while some CPU has it.
struct Slot {
    /// The CPU that it was on last, which sees to its local APIC's timer.
    place: AtomicU32,
    exits: AtomicU64,
    /// The guest has not started it.
    offline: AtomicBool,
    dump: AtomicBool,
}

impl Slot {
    const fn new(place: u32, offline: bool) -> Self {
        Self {
            place: AtomicU32::new(place),
            exits: AtomicU64::new(0),
            offline: AtomicBool::new(offline),
            dump: AtomicBool::new(false),
        }
    }
}

/// A guest that exists.
pub struct Vm<P: Platform> {
    /// Unique since the host started; a guest that is started again gets another.
    pub id: u32,
    pub blueprint: Arc<Blueprint>,
    pub memory: Arc<P::Memory>,
    pub board: Board,
    /// Zero of the guest's own clocks.
    pub started: Time,
    /// The CPU that sees to the devices' timers: the one that has last changed them.
    home: AtomicU32,
    /// What others may know of each vCPU.
    slots: Box<[Slot]>,
    /// vCPUs that exist.
    vcpus_left: AtomicU32,
    end: Mutex<Option<End>>,
    /// It is kept under another name, while a new one has its own.
    renamed: AtomicBool,
    reboot_at_power_off: AtomicBool,
    /// The operator has destroyed it: nothing follows its end.
    pub(crate) condemned: Arc<AtomicBool>,
    /// Run time in ns of the vCPUs that are gone.
    time_of_ended: AtomicU64,
    output: GuestConsole,
    /// Unfinished lines of the serial ports that lead to the log.
    logged: Mutex<[LineBuffer; SERIAL_PORTS]>,
    console: Arc<Console>,
    /// What the guest has told of itself by Hyper-V's MSRs.
    pub(crate) viridian: Partition,
}

impl<P: Platform> Vm<P> {
    /// Makes a guest: memory, board, ACPI tables, kernel, vCPUs.
    ///
    /// # Errors
    /// The key that asks for what there is not.
    pub fn build(
        platform: &'static P,
        clock: &Clock,
        console: &Arc<Console>,
        blueprint: &Arc<Blueprint>,
        id: u32,
    ) -> Result<(Arc<Self>, Vec<VirtCpu<P>>), ConfigError> {
        let config = &blueprint.config;
        let create = |error| config.error(Key::Memory, Reason::Create(error));

        let features = Features::new(platform, config.vcpus, &config.cpuid)
            .map_err(|missing| config.error(Key::Cpuid, Reason::Cpuid(CpuidError::Unavailable(missing))))?;
        let ranges = layout::ram_ranges(config.memory);
        let memory = Arc::new(platform.create_memory(&ranges).map_err(create)?);
        let entry = blueprint.load(&*memory)?;
        if entry.efer & Efer::LME.bits() != 0 && !features.has((Word::X1Edx, 29)) {
            return Err(config.error(Key::Cpuid, Reason::Cpuid(CpuidError::EntersLongMode)));
        }

        let apics: Vec<Arc<LocalApic>> = (0..config.vcpus).map(|n| LocalApic::new_shared(n, n == 0)).collect();
        let now = clock.now(platform);
        if let Some(boot) = apics.first() {
            virtual_wire(boot, now);
        }
        let utc = platform.wall_clock_ms(clock.origin()) / 1000;
        let board = Board::new(
            &config.name,
            &BoardConfig {
                ram_below_4g: ranges.iter().map(|r| r.end().0).filter(|&end| end <= layout::ABOVE_4G).max().unwrap_or(0),
                ram_above_4g: ranges.iter().filter(|r| r.gpa.0 >= layout::ABOVE_4G).map(|r| r.size).sum(),
                wall_clock: utc.saturating_add_signed(config.rtc_offset),
                debug_exit: config.isa_debug_exit,
                missed_ticks: config.missed_ticks,
                hpet: config.hpet,
                serial: core::array::from_fn(|n| has_port(config, n)),
                testdev: config.pc_testdev,
            },
            apics.clone(),
            now,
        );
        let vm = Arc::new(Self {
            id,
            blueprint: blueprint.clone(),
            memory: memory.clone(),
            board,
            started: now,
            home: AtomicU32::new(platform.this_cpu()),
            slots: (0..config.vcpus).map(|n| Slot::new(platform.this_cpu(), n != 0)).collect(),
            renamed: AtomicBool::new(false),
            reboot_at_power_off: AtomicBool::new(false),
            condemned: Arc::default(),
            time_of_ended: AtomicU64::new(0),
            vcpus_left: AtomicU32::new(config.vcpus),
            end: Mutex::new(None),
            output: GuestConsole::default(),
            logged: Mutex::default(),
            console: console.clone(),
            viridian: Partition::default(),
        });

        let xcr0 = Xcr0Policy::new(&features);
        // All vCPUs of a guest share the offset: their TSCs are in step, and start at zero.
        let tsc_mode = config.tsc_mode;
        let tsc_offset = tsc_mode.counter(clock, platform.tsc()).wrapping_neg();
        let mut vcpus = Vec::new();
        for (n, apic) in (0..config.vcpus).zip(apics) {
            let cpuid = Box::new(
                CpuidPolicy::new(platform, &features, n, config.vcpus, &xcr0, tsc_mode.hz(clock.tsc_hz()))
                    .with_viridian(config.viridian),
            );
            let hw_config = VcpuConfig {
                id: n,
                vcpus: config.vcpus,
                cr4_allowed: cpuid.cr4_allowed(),
                intercept_rdtsc: tsc_mode == TscMode::Emulated,
                apic_page: Some(apic.clone()),
            };
            let mut hw = platform.create_vcpu(&memory, &hw_config).map_err(create)?;
            if n == 0 {
                hw.set_state(&entry);
            }
            let msrs = MsrState::new(&cpuid, layout::LOW_RAM_MAX, tsc_offset);
            vcpus.push(VirtCpu::new(vm.clone(), hw, apic, n, cpuid, msrs, xcr0));
        }
        log::info!("guest {}: {} MiB, {} vCPU, {}", config.name, memory.size() >> 20, config.vcpus, blueprint.kernel_kind());
        Ok((vm, vcpus))
    }

    /// The name in its configuration.
    pub fn name(&self) -> &str {
        &self.blueprint.config.name
    }

    /// True if CPU `cpu` sees to the devices' timers.
    pub fn is_home(&self, cpu: u32) -> bool {
        self.home.load(Ordering::Acquire) == cpu
    }

    /// CPU `cpu` sees to the devices' timers from now on. Called after they have changed and before their deadline is read, so that of several
    /// CPUs the one that stays has seen all changes.
    pub fn set_home(&self, cpu: u32) {
        self.home.store(cpu, Ordering::SeqCst);
    }

    /// The CPU that a vCPU was on last.
    pub fn was_on(&self, vcpu: usize) -> u32 {
        self.slots.get(vcpu).map_or(0, |slot| slot.place.load(Ordering::Acquire))
    }

    pub(crate) fn set_place(&self, vcpu: u32, cpu: u32) {
        if let Some(slot) = self.slots.get(vcpu as usize) {
            slot.place.store(cpu, Ordering::Release);
        }
    }

    fn slot(&self, vcpu: u32) -> Option<&Slot> {
        self.slots.get(vcpu as usize)
    }

    /// Notes what others may want to know of a vCPU that has just stopped running.
    pub(crate) fn note(&self, vcpu: u32, exits: u64, offline: bool) {
        if let Some(slot) = self.slot(vcpu) {
            slot.exits.store(exits, Ordering::Relaxed);
            slot.offline.store(offline, Ordering::Relaxed);
        }
    }

    /// Exits of a vCPU up to when it last stopped.
    pub fn exits_of(&self, vcpu: u32) -> u64 {
        self.slot(vcpu).map_or(0, |slot| slot.exits.load(Ordering::Relaxed))
    }

    /// True for a vCPU that the guest has not started.
    pub fn is_offline(&self, vcpu: u32) -> bool {
        self.slot(vcpu).is_none_or(|slot| slot.offline.load(Ordering::Relaxed))
    }

    /// The CPU that has the vCPU is to log its registers.
    pub(crate) fn ask_for_dump(&self, vcpu: u32) {
        if let Some(slot) = self.slot(vcpu) {
            slot.dump.store(true, Ordering::Release);
        }
    }

    /// True once after that.
    pub(crate) fn take_dump_request(&self, vcpu: u32) -> bool {
        self.slot(vcpu).is_some_and(|slot| slot.dump.load(Ordering::Acquire) && slot.dump.swap(false, Ordering::AcqRel))
    }

    pub(crate) fn rename(&self) {
        self.renamed.store(true, Ordering::Release);
    }

    pub(crate) fn is_renamed(&self) -> bool {
        self.renamed.load(Ordering::Acquire)
    }

    /// What an ended guest that is kept is called.
    pub fn kept_name(&self) -> String {
        if self.is_renamed() { alloc::format!("{}-{}", self.name(), self.id) } else { String::from(self.name()) }
    }

    /// The guest's next power-off counts as a reboot.
    pub(crate) fn reboot_at_power_off(&self) {
        self.reboot_at_power_off.store(true, Ordering::Release);
    }

    pub(crate) fn reboots_at_power_off(&self) -> bool {
        self.reboot_at_power_off.load(Ordering::Acquire)
    }

    /// Run time in ns of the vCPUs that are gone.
    pub fn cpu_time_of_ended(&self) -> u64 {
        self.time_of_ended.load(Ordering::Relaxed)
    }

    /// Notes how the guest has ended; the first reason stays.
    pub(crate) fn set_end(&self, end: End) {
        self.end.lock().get_or_insert(end);
    }

    /// How the guest has ended, if it has.
    pub fn end(&self) -> Option<End> {
        *self.end.lock()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.end().is_none()
    }

    /// A vCPU has been dropped. True if it was the last.
    pub(crate) fn vcpu_gone(&self) -> bool {
        self.vcpus_left.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Passes the serial port's output on to the console, as far as that has room.
    pub fn pump_output(&self, platform: &P) {
        self.console.catch_up(platform, self.id, self.name(), &self.output);
        let serial = &self.blueprint.config.serial;
        self.board.drain_serial(|port, byte| match serial.get(port) {
            Some(Serial::Pty) => self.console.write(platform, self.id, self.name(), &self.output, byte),
            Some(Serial::Log) => {
                self.log_serial(port, byte);
                true
            }
            Some(Serial::Null | Serial::None) | None => true,
        });
    }

    /// A byte of a serial port that leads to the log.
    fn log_serial(&self, port: usize, byte: u8) {
        let line = self.logged.lock().get_mut(port).and_then(|buffer| buffer.push(byte));
        if let Some(line) = line {
            let text = core::str::from_utf8(&line).unwrap_or_default();
            log::info!(target: "guest", "{}: serial {}: {text}", self.name(), port + 1);
        }
    }

    /// The serial port that leads to the console.
    fn console_port(&self) -> Option<usize> {
        self.blueprint.config.serial.iter().position(|port| *port == Serial::Pty)
    }

    /// True if the console has not taken all of the output yet.
    pub fn has_output(&self) -> bool {
        self.board.has_events() || self.console.is_behind(self.id, &self.output)
    }

    /// Shows what is left of the output, at the guest's end.
    pub fn finish_output(&self, platform: &P) {
        self.output.end();
        self.pump_output(platform);
        self.console.finish(platform, self.name(), &self.output);
    }

    /// True for a guest whose serial port leads to the console.
    pub fn has_console(&self) -> bool {
        self.console_port().is_some()
    }

    /// Bytes typed for this guest, which gets them as its serial port takes them. False if they are too many.
    pub fn type_in(&self, now: Time, bytes: &[u8]) -> bool {
        let fits = !self.has_console() || self.output.type_in(bytes);
        self.pump_input(now);
        fits
    }

    /// Passes on what was typed for this guest, as far as its serial port takes it.
    pub fn pump_input(&self, now: Time) {
        while self.has_typed() && self.wants_input() {
            let Some(byte) = self.output.take_typed() else { break };
            self.input(now, byte);
        }
    }

    /// True if something typed for this guest waits for its serial port.
    pub fn has_typed(&self) -> bool {
        self.output.has_typed()
    }

    /// True if the serial port can take a byte of input now.
    pub fn wants_input(&self) -> bool {
        self.console_port().is_some_and(|port| self.board.serial_wants_input(port))
    }

    /// A byte typed for this guest.
    pub fn input(&self, now: Time, byte: u8) {
        if let Some(port) = self.console_port() {
            self.board.serial_input(now, port, byte);
        }
    }
}

/// Whether the configuration asks for serial port `n`, from 0.
fn has_port(config: &GuestConfig, n: usize) -> bool {
    config.serial.get(n).is_some_and(|port| *port != Serial::None)
}

/// Leaves the boot processor's local APIC as firmware does: enabled, the 8259 pair on LINT0, NMI on LINT1 (MultiProcessor Specification
/// 1.4, 3.6.2.2).
fn virtual_wire(apic: &LocalApic, now: Time) {
    for (register, value) in [(0xf0, 0x1ff), (0x350, 0x700), (0x360, 0x400)] {
        apic.mmio_write(now, register, Width::Dword, value);
    }
}

impl<P: Platform> Drop for Vm<P> {
    fn drop(&mut self) {
        log::debug!("guest {}: freed {} MiB", self.name(), self.memory.size() >> 20);
    }
}
