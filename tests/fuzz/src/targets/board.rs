//! All devices together, as a guest with two vCPUs reaches them: the ports, device memory, local APICs, and what happens outside.

use crate::{Source, Target};
use devices::{
    MissedTicks,
    interrupt::{DeliveryMode, InterruptMessage},
    lapic::{LocalApic, Pending},
};
use hv::board::{Board, BoardConfig, SERIAL_PORTS};
use std::sync::Arc;
use x86defs::{Gpa, Time, Width};

/// Any accesses to any ports and any device memory.
pub const BOARD: Target = Target {
    name: "board",
    run: board,
    seeds: &[
        // The 8259 pair as Linux sets it up, the PIT at 1 kHz, its interrupts taken; COM1; the PCI card placed.
        b"\x0f\x00\x01\x00\x11\x00\x02\x00\x30\x00\x02\x00\x04\x00\x02\x00\x01\x00\x02\x00\xfe\x00\x0a\x00\x34\x00\x07\x00\xa9\x00\x07\x00\x04\x04\x05\x00\x00\x01\x00\x20",
        b"\x0f\x00\x1b\x00A\x06\x02\x00\x21\x02\x03\x18\x00\x80\x00\x25\x02\x01\xc0\x00\x00",
    ],
    // Time, deadlines, interrupts taken by both vCPUs.
    words: &[b"\x03\xac\x00\x10", b"\x03\xff\xff\xff", b"\x04", b"\x05\x00", b"\x05\x01", b"\x06\x00"],
};

/// Every claim's first port and size.
const PORTS: &[(u16, u16)] = &[
    (0x20, 2),
    (0xa0, 2),
    (0x4d0, 2),
    (0x40, 4),
    (0x61, 1),
    (0x60, 1),
    (0x64, 1),
    (0x70, 2),
    (0x80, 1),
    (0x92, 1),
    (0x3f8, 8),
    (0x2f8, 8),
    (0x3e8, 8),
    (0x2e8, 8),
    (0xe9, 1),
    (0x402, 1),
    (0x600, 0x80),
    (0xcf8, 8),
    (0xf4, 1),
    // Where the card may be, and beside it.
    (0xc000, 9),
    (0, 0xffff),
];
/// The same for device memory: local APIC, IOAPIC, HPET, configuration space of three functions, and where the card may be.
const MEMORY: &[(u64, u64)] = &[
    (0xfee0_0000, 0x400),
    (0xfec0_0000, 0x44),
    (0xfed0_0000, 0x400),
    (0xb000_0000, 0x100),
    (0xb000_0000 + (3 << 15), 0x100),
    (0xb000_0000 + (31 << 15), 0x100),
    (0xd000_0000, 0x1000),
    (0, 1 << 36),
];
const VCPUS: u32 = 2;
const PORT_WIDTHS: &[Width] = &[Width::Byte, Width::Word, Width::Dword];
const MEMORY_WIDTHS: &[Width] = &[Width::Dword, Width::Qword, Width::Byte, Width::Word];
/// Deadlines in a row in one step, and at the end.
const DEADLINES: usize = 16;
const LAST_DEADLINES: usize = 192;
/// As for the single devices: so many may come close together, of so many timers, which else have at least this beat.
const CLOSE_DEADLINES: u64 = 80;
const TIMERS: u64 = 20;
const BEAT: u64 = devices::lapic::MIN_PERIOD.0;

fn board(source: &mut Source<'_>) {
    let shape = source.u8();
    let apics: Vec<_> = (0..VCPUS).map(|id| Arc::new(LocalApic::new(id, id == 0))).collect();
    let config = BoardConfig {
        ram_below_4g: 32 << 20,
        ram_above_4g: 0,
        wall_clock: 1_700_000_000,
        debug_exit: Some(0xf4),
        testdev: true,
        missed_ticks: if shape & 1 == 0 { MissedTicks::Deliver } else { MissedTicks::Merge },
        hpet: shape & 2 != 0,
        serial: core::array::from_fn(|n| n == 0 || shape >> 2 & 1 << n != 0),
    };
    let mut now = Time(0);
    let board = Board::new("fuzz", &config, apics, now);
    while !source.is_empty() {
        let idle: Vec<u32> = (0..VCPUS).filter(|&vcpu| board.router.pending(vcpu).is_none()).collect();
        let _ = board.router.take_woken();
        // The vCPU that the step is one of, which needs nobody to tell it.
        let mut own = None;
        match source.below(8) {
            0 => {
                let (port, width) = port(source);
                board.port_write(now, port, width, source.value(width) as u32);
            }
            1 => {
                let (port, width) = port(source);
                let value = board.port_read(now, port, width);
                assert!(u64::from(value) <= width.mask(), "{value:#x} from port {port:#x}, {width:?}");
            }
            2 => {
                let (vcpu, gpa, width) = memory(source);
                own = Some(vcpu);
                if source.u8() & 1 == 0 {
                    board.mmio_write(vcpu, now, gpa, width, source.value(width));
                } else {
                    let value = board.mmio_read(vcpu, now, gpa, width);
                    assert!(value <= width.mask(), "{value:#x} from {gpa:?}, {width:?}");
                }
            }
            3 => now = Time(now.0.saturating_add(source.delay())),
            4 => follow(&board, &mut now, DEADLINES),
            5 => {
                let vcpu = u32::from(source.u8()) % VCPUS;
                own = Some(vcpu);
                take(&board, vcpu);
            }
            6 => outside(&board, now, source),
            _ => {
                let vcpu = u32::from(source.u8()) % VCPUS;
                own = Some(vcpu);
                registers(&board, now, vcpu, source);
            }
        }
        let woken = board.router.take_woken();
        for vcpu in idle.into_iter().filter(|&vcpu| board.router.pending(vcpu).is_some()) {
            assert!(board.router.apics()[vcpu as usize].attention(), "vCPU {vcpu} does not look");
            assert!(own == Some(vcpu) || woken.contains(vcpu as usize), "vCPU {vcpu} sleeps");
        }
    }
    follow(&board, &mut now, LAST_DEADLINES);
}

fn port(source: &mut Source<'_>) -> (u16, Width) {
    let (first, count) = *source.pick(PORTS);
    let port = first + source.below(count.into()) as u16;
    (port, *source.pick(PORT_WIDTHS))
}

fn memory(source: &mut Source<'_>) -> (u32, Gpa, Width) {
    let (first, size) = *source.pick(MEMORY);
    let width = *source.pick(MEMORY_WIDTHS);
    // Accesses are within a page.
    let at = first + u64::from(source.u32()) % size;
    let at = at.min((at | 0xfff) + 1 - width.bytes() as u64);
    (u32::from(source.u8()) % VCPUS, Gpa(at), width)
}

/// The vCPU takes what is pending, as its run loop does.
fn take(board: &Board, vcpu: u32) {
    let Some(apic) = board.router.apics().get(vcpu as usize) else { return };
    match apic.take() {
        Some(Pending::ExtInt) => {
            board.router.acknowledge_extint();
        }
        Some(Pending::Lapic(_)) | None => {}
    }
    apic.take_nmi();
    if apic.take_startup().is_some() {
        apic.init();
    }
}

/// Its local APIC as MSRs, and its base.
fn registers(board: &Board, now: Time, vcpu: u32, source: &mut Source<'_>) {
    let Some(apic) = board.router.apics().get(vcpu as usize) else { return };
    match source.below(4) {
        0 => drop(apic.set_base_msr(*source.pick(&[0xfee0_0800, 0xfee0_0c00, 0xfee0_0000, 0xfec0_0800, 0xd000_0800]), 40)),
        1 => drop(apic.msr_read(now, 0x800 + u32::from(source.u8()))),
        _ => {
            let index = 0x800 + u32::from(source.u8());
            if let Ok(effect) = apic.msr_write(now, index, source.u64()) {
                board.lapic_effect(vcpu, effect);
            }
        }
    }
}

/// What happens outside of the guest.
fn outside(board: &Board, now: Time, source: &mut Source<'_>) {
    match source.below(6) {
        0 => board.press_power_button(),
        1 => board.press_sleep_button(),
        2 => {
            let (port, byte) = (source.below(SERIAL_PORTS + 1), source.u8());
            let _ = board.serial_wants_input(port);
            board.serial_input(now, port, byte);
        }
        3 => {
            let mut left = source.u8();
            board.drain_serial(|port, _| {
                assert!(port < SERIAL_PORTS);
                left = left.saturating_sub(1);
                left > 0
            });
        }
        4 => board.router.set_nmi(source.u8() & 1 != 0),
        _ => {
            let message = source.u32();
            let (address, data) = (0xfee0_0000 | u64::from(message >> 16) << 2, message & 0xffff);
            if let Some(message) = InterruptMessage::from_msi(address, data) {
                assert_ne!(message.delivery, DeliveryMode::StartUp, "a device cannot start a processor");
                board.router.deliver(message);
            }
        }
    }
}

/// Goes from deadline to deadline: each lies ahead of the one before, and they do not come too close.
fn follow(board: &Board, now: &mut Time, steps: usize) {
    board.advance(*now);
    let start = *now;
    for step in 0..steps as u64 {
        let Some(deadline) = board.deadline() else { return };
        assert!(deadline > *now, "at {now:?} comes {deadline:?}");
        *now = deadline;
        board.advance(deadline);
        let least = step.saturating_sub(CLOSE_DEADLINES) / TIMERS * BEAT;
        assert!(now.since(start).0 >= least, "{step} deadlines within {:?}", now.since(start));
    }
}
