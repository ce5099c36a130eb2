//! Start-up, in order. Each step may use what the steps before have set up, and nothing else.

use crate::options::{self, CrashTest, Parsed};
use crate::{HEAP, image, report};
use alloc::{borrow::Cow, boxed::Box, string::String, vec::Vec};
use arch::cpu::{features, stack, trap};
use arch::mm::{self, direct, frames, frames::Range};
use arch::multiboot::{self, BootInformation, MemoryKind};
use arch::{acpi, apic, console, crash, power, rtc, smp, symbols, timer, tsc};
use core::cell::UnsafeCell;
use hv::log::{always, error, info, warn};
use x86defs::Hpa;

/// Memory for what is allocated before the frame allocator runs: the options, and a few lists.
#[repr(C, align(4096))]
struct EarlyHeap(UnsafeCell<[u8; EARLY_HEAP]>);
const EARLY_HEAP: usize = 64 * 1024;
// SAFETY: given to the heap, once, and never touched otherwise.
unsafe impl Sync for EarlyHeap {}
static EARLY: EarlyHeap = EarlyHeap(UnsafeCell::new([0; EARLY_HEAP]));

struct ConsoleSink;

impl hv::log::Sink for ConsoleSink {
    fn write(&self, bytes: &[u8]) {
        console::write_all(bytes);
    }
}

struct TscStamp {
    origin: u64,
    to_ns: x86defs::Rate,
}

impl hv::log::StampSource for TscStamp {
    fn stamp(&self) -> hv::log::Stamp {
        let tsc = tsc::now();
        hv::log::Stamp { tsc, boot_ns: self.to_ns.apply(tsc.saturating_sub(self.origin)), unix_ms: rtc::unix_ms(tsc) }
    }
}

/// Bytes of a physical range below 4 GiB.
///
/// # Safety
/// The range is memory that the loader filled and that nobody writes any more.
unsafe fn view(range: Range) -> &'static [u8] {
    // SAFETY: the caller's; early and final direct map have it at the same address.
    unsafe { core::slice::from_raw_parts(direct::to_virt(Hpa(range.start)), range.size() as usize) }
}

/// Reads the boot information where the loader put it.
fn boot_information(address: u64) -> (BootInformation<'static>, Range) {
    if address == 0 || !address.is_multiple_of(8) {
        crash::refuse(format_args!("the boot loader's information is at {address:#x}, which cannot be"));
    }
    // SAFETY: the loader's information starts with its size; the early direct map reaches it.
    let size = unsafe { direct::to_virt(Hpa(address)).cast::<u32>().read_unaligned() };
    if size > multiboot::MAX_SIZE {
        crash::refuse(format_args!("the boot loader's information claims to have {size} bytes"));
    }
    let range = Range::new(address, address + u64::from(size));
    // SAFETY: the loader's own structure, which is reserved below.
    match BootInformation::new(unsafe { view(range) }) {
        Ok(information) => (information, range),
        Err(malformed) => crash::refuse(format_args!("the boot loader's information is malformed: {malformed:?}")),
    }
}

/// Brings the host up and runs the guests.
///
/// # Safety
/// Once, from the entry code.
pub unsafe fn start(boot_information_at: u64, offset: u64, entered: u64) -> ! {
    direct::set_image_offset(offset);
    let cpu_features = features::detect();
    // SAFETY: once, first of all, at CPL 0 on the boot CPU; the early tables have no user pages, and the entry code has checked for NX.
    unsafe {
        trap::init_boot_cpu();
        features::set_up(&cpu_features);
        HEAP.add(EARLY.0.get().cast(), EARLY_HEAP);
    }
    let (information, information_range) = boot_information(boot_information_at);
    // SAFETY: the tables are reserved below and never written.
    if let Some(table) = information.sections().symbols(|range| unsafe { view(range) }) {
        symbols::init(table);
    }
    let Parsed { options, problems, crash: crash_test } = options::parse(information.command_line());
    crash::set_reboot(!options.noreboot);
    hv::log::init(&options);

    let mut reserved: Vec<Range> = Vec::from([image::physical(offset), information_range]);
    reserved.extend(information.modules().map(|m| m.range));
    reserved.extend(information.sections().loaded_beside());
    set_up_memory(information, &reserved, &cpu_features, options.mem);

    let display = options::display(&options, information.screen());
    let missing = console::init(&options::serial_ports(&options), display.unwrap_or(None));
    hv::log::set_sink(&ConsoleSink);
    report::banner(information.loader(), information.command_line());
    for problem in &problems {
        warn!("{problem}");
    }
    for port in &missing {
        warn!("console: no serial port at {:#x}", port.io_base);
    }
    report::display(display);
    report::cpu(&cpu_features);
    report::memory(usable(information).map(|range| range.size()).sum(), options.mem);

    let platform = read_acpi(information);
    power::init(&platform);
    set_up_interrupts(&platform, &cpu_features);
    set_up_time(&platform, &cpu_features, entered);
    for irq in console::enable_interrupts(&platform.interrupts.overrides) {
        warn!("console: no IOAPIC pin for IRQ {irq}, the serial port is polled");
    }
    if matches!(display, Ok(Some(_))) {
        let denied = platform.fixed.no_i8042;
        report::keyboard(if denied {
            console::KeyboardFound::None
        } else {
            console::init_keyboard(&platform.interrupts.overrides)
        });
    }
    // SAFETY: once, on the boot CPU, whose interrupt controller and timer are set up.
    let started = unsafe { smp::start(&platform.interrupts.cpus, &cpu_features, options.maxcpus) };
    report::cpus(&started, platform.interrupts.cpus.len());

    let modules = modules(information);
    report::modules(modules);
    if let Some(test) = crash_test {
        crash_now(test);
    }
    let image_bytes = image::physical(offset).size();
    let cmdline = information.command_line();
    crate::vendor::run(&hv::BootInfo { options, modules, version: crate::VERSION, cmdline, entered, image_bytes })
}

/// RAM that is free as far as the loader knows.
fn usable(information: BootInformation<'static>) -> impl Iterator<Item = Range> + Clone {
    information.memory_map().filter(|m| m.kind == MemoryKind::Available).map(|m| m.range)
}

/// Frame allocator, final page tables, and the memory above 4 GiB.
fn set_up_memory(information: BootInformation<'static>, reserved: &[Range], features: &features::Features, limit: Option<u64>) {
    let usable = || usable(information);
    // SAFETY: the memory map's available memory less what the loader filled is nobody's; the early direct map reaches 4 GiB.
    if let Err(error) = unsafe { frames::init(usable(), reserved, limit) } {
        match error {
            frames::InitError::NoMemory => {
                crash::refuse(format_args!("the boot loader's memory map has no usable memory (or mem= leaves none)"))
            }
            frames::InitError::NoRoomForBitmap(bytes) => {
                crash::refuse(format_args!("no {bytes} bytes of memory in one piece below 4 GiB for the frame allocator"))
            }
        }
    }
    let mut ram: Vec<Range> = information
        .memory_map()
        .filter(|m| m.kind != MemoryKind::Reserved)
        .map(|m| m.range)
        .filter(|r| r.end <= direct::SIZE)
        .collect();
    // The loader's own structures may lie in memory that its map calls something else.
    ram.extend_from_slice(reserved);
    let guards = stack::boot_stacks().named().map(|(_, bounds)| bounds.guard());
    // SAFETY: once, after the frame allocator; the sections cover the image, and we run on the boot stack in it.
    if let Err(error) = unsafe { mm::init(&mut ram, &image::sections(), &guards, features.largest_page()) } {
        crash::refuse(format_args!("cannot build the host's page tables: {error:?}"));
    }
    // SAFETY: as for `init`; the final direct map reaches all RAM.
    unsafe { frames::init_high(usable(), reserved, limit) };
}

/// The firmware's tables; an empty set if there are none, which leaves a host without IOAPIC and power-off.
fn read_acpi(information: BootInformation<'static>) -> acpi::Platform {
    let Some(root) = information.rsdps().find_map(acpi::parse_rsdp).or_else(acpi::search_bios) else {
        error!("ACPI: no RSDP from the boot loader and none in the BIOS: no IOAPIC, no power-off");
        return acpi::Platform::default();
    };
    match acpi::read(root) {
        Ok(platform) => platform,
        Err(reason) => {
            error!("ACPI: {root:x?} is unusable: {reason:?}: no IOAPIC, no power-off");
            acpi::Platform::default()
        }
    }
}

fn set_up_interrupts(platform: &acpi::Platform, features: &features::Features) {
    apic::silence_8259();
    // SAFETY: once on this CPU, with the IDT loaded.
    let mode = unsafe { apic::init(features) };
    apic::init_io(&platform.interrupts.io_apics);
    info!("Interrupts: {mode:?}, {} IOAPIC(s)", platform.interrupts.io_apics.len());
}

fn set_up_time(platform: &acpi::Platform, features: &features::Features, origin: u64) {
    let calibration = match tsc::calibrate(platform) {
        Ok(calibration) => calibration,
        Err(tsc::NoClock) => {
            crash::refuse(format_args!("no clock to measure the TSC with: PM timer, HPET and PIT all stand still"))
        }
    };
    let mhz = |hz: u64| (hz / 1_000_000, hz / 1000 % 1000);
    let (whole, part) = mhz(calibration.hz);
    always!("TSC: {whole}.{part:03} MHz by {}", calibration.source);
    if let Some((leaf, claimed)) = calibration.refuted {
        info!("TSC: CPUID {leaf:#x} claims {} MHz, which the measurement refutes", claimed / 1_000_000);
    }
    if !rtc::init(platform.fixed.century) {
        warn!("RTC: no valid date; the wall clock starts in 1970");
    }
    let stamp = TscStamp { origin, to_ns: x86defs::Rate::new(calibration.hz, 1_000_000_000) };
    hv::log::set_clock(Box::leak(Box::new(stamp)));
    let kind = timer::init(features.tsc_deadline, calibration.hz);
    timer::init_cpu();
    match kind {
        timer::Kind::TscDeadline => info!("Timer: local APIC, TSC deadline"),
        timer::Kind::OneShot { bus_hz } => {
            let (whole, part) = mhz(bus_hz);
            info!("Timer: local APIC, one-shot, {whole}.{part:03} MHz");
        }
    }
}

fn modules(information: BootInformation<'static>) -> &'static [hv::Module] {
    let list: Vec<hv::Module> = information
        .modules()
        .map(|module| {
            let (name, args) = multiboot::split_name(module.command_line);
            let name = match name {
                Cow::Borrowed(name) => name,
                Cow::Owned(name) => String::leak(name),
            };
            // SAFETY: the module's memory is reserved, and nobody writes it.
            hv::Module { name, args, data: unsafe { view(module.range) } }
        })
        .collect();
    Box::leak(list.into_boxed_slice())
}

/// Crashes as the option asks.
fn crash_now(test: CrashTest) -> ! {
    warn!("crash={test:?}: crashing on purpose");
    match test {
        CrashTest::Panic => panic!("crash=panic was given"),
        // SAFETY: no; that is the purpose.
        CrashTest::PageFault => unsafe { (0xdead_0000 as *mut u8).write_volatile(1) },
        CrashTest::DoubleFault => {
            // An exception without a stack to report it on.
            // SAFETY: no; that is the purpose.
            unsafe { core::arch::asm!("mov rsp, {}", "push rax", in(reg) 0xffff_9000_0000_0000u64) };
        }
        CrashTest::Guard => {
            overflow(0);
        }
    }
    crash::die(format_args!("the crash did not happen"), None)
}

/// Uses up the stack.
#[inline(never)]
fn overflow(depth: u64) -> u64 {
    let room = core::hint::black_box([depth; 64]);
    let deeper = if depth == u64::MAX { 0 } else { overflow(depth + 1) };
    deeper + room[depth as usize % 64]
}
