//! What Linux 6.1 does with the local APIC at boot (arch/x86/kernel/apic/apic.c), as the sequence of register accesses.

use super::*;

const TIMER: u32 = 0xec;
const ERROR: u32 = 0xfe;

/// clear_local_APIC(): everything masked.
fn clear(apic: &LocalApic, rd: &impl Fn(u32) -> u32, wr: &impl Fn(u32, u32)) {
    assert_eq!(rd(reg::VERSION) >> 16 & 0xff, 5);
    wr(reg::LVT_ERROR, ERROR | 1 << 16);
    for entry in [reg::LVT_TIMER, reg::LVT_LINT0, reg::LVT_LINT1, reg::LVT_PERFORMANCE, reg::LVT_THERMAL] {
        wr(entry, rd(entry) | 1 << 16);
    }
    for entry in [reg::LVT_TIMER, reg::LVT_LINT0, reg::LVT_LINT1, reg::LVT_ERROR, reg::LVT_PERFORMANCE] {
        wr(entry, 1 << 16);
    }
    wr(reg::ESR, 0);
    assert_eq!(rd(reg::ESR), 0);
    for entry in reg::LVT {
        assert_ne!(rd(entry) & 1 << 16, 0);
    }
    assert_eq!(apic.deadline(), None);
}

/// setup_local_APIC() of the boot processor, interrupts off, then end_local_APIC_setup().
fn set_up(apic: &LocalApic, rd: &impl Fn(u32) -> u32, wr: &impl Fn(u32, u32)) {
    wr(reg::TPR, rd(reg::TPR) & !0xff | 0x10);
    // apic_pending_intr_clear(): what is in service from before is ended, what is requested is counted.
    for index in (0..8).rev() {
        for _ in 0..(rd(reg::ISR + index * 16)).count_ones() {
            wr(reg::EOI, 0);
        }
        assert_eq!(rd(reg::IRR + index * 16), 0);
    }
    let svr = rd(reg::SVR) & !0xff | 1 << 8 & !(1 << 9) | 0xff;
    wr(reg::SVR, svr);
    let lint0 = rd(reg::LVT_LINT0) & 1 << 16;
    assert_ne!(lint0, 0);
    wr(reg::LVT_LINT0, 0x700);
    wr(reg::LVT_LINT1, 0x400);
    wr(reg::ESR, 0);
    wr(reg::LVT_ERROR, ERROR);
    wr(reg::ESR, 0);
    assert_eq!(rd(reg::ESR), 0);
    assert_eq!((rd(reg::LVT_LINT0), rd(reg::LVT_LINT1), rd(reg::LVT_ERROR)), (0x700, 0x400, ERROR));
    assert!(apic.lint0_accepts_extint());
}

/// calibrate_APIC_clock() with the timer alone: a long count with the entry masked, read twice 100 ms apart; then periodic ticks.
fn calibrate(apic: &LocalApic, rd_at: &impl Fn(u64, u32) -> u32, wr_at: &impl Fn(u64, u32, u32)) {
    let start = 7_000_000;
    wr_at(start, reg::LVT_TIMER, TIMER | 1 << 17 | 1 << 16);
    let tdcr = rd_at(start, reg::TDCR);
    wr_at(start, reg::TDCR, tdcr & !0xf & !0xb | 3);
    wr_at(start, reg::TMICT, 0xffff_ffff);
    let (first, second) = (rd_at(start + 10_000_000, reg::TMCCT), rd_at(start + 110_000_000, reg::TMCCT));
    let ticks = first - second;
    assert_eq!(ticks, 100_000_000 / 16, "bus clock of 1 GHz, divided by 16");
    // CLOCK_EVT_STATE_PERIODIC at 250 Hz, verified against jiffies: a tick each 4 ms.
    let begin = start + 200_000_000;
    wr_at(begin, reg::LVT_TIMER, TIMER | 1 << 17);
    wr_at(begin, reg::TDCR, 3);
    wr_at(begin, reg::TMICT, ticks / 25);
    let mut beats = 0;
    while let Some(next) = apic.deadline()
        && next.0 <= begin + 100_000_000
    {
        assert!(apic.advance(next));
        take(apic, TIMER as u8);
        wr_at(next.0, reg::EOI, 0);
        beats += 1;
    }
    assert_eq!(beats, 25);
    // lapic_timer_shutdown(), then one-shot.
    let end = begin + 101_000_000;
    wr_at(end, reg::LVT_TIMER, TIMER | 1 << 17 | 1 << 16);
    wr_at(end, reg::TMICT, 0);
    assert_eq!(apic.deadline(), None);
    wr_at(end, reg::LVT_TIMER, TIMER);
    wr_at(end, reg::TMICT, 6_250);
    assert_eq!(apic.deadline(), Some(Time(end + 100_000)));
}

#[test]
fn boot_in_xapic_mode() {
    let apic = LocalApic::new(0, true);
    let (rd, wr) = (
        |r| read(&apic, r),
        |r, v| {
            write(&apic, r, v);
        },
    );
    clear(&apic, &rd, &wr);
    // init_apic_ldr() of the flat model.
    wr(reg::DFR, 0xffff_ffff);
    wr(reg::LDR, rd(reg::LDR) & 0xff_ffff | 1 << 24);
    set_up(&apic, &rd, &wr);
    assert_eq!(apic.address().ldr, 1 << 24);
    calibrate(&apic, &|now, r| apic.mmio_read(Time(now), r.into(), Width::Dword) as u32, &|now, r, v| {
        apic.mmio_write(Time(now), r.into(), Width::Dword, v.into());
    });
}

#[test]
fn boot_in_x2apic_mode() {
    let apic = LocalApic::new(0, true);
    // __x2apic_enable()
    apic.set_base_msr(apic.base_msr() | 1 << 10, 40).unwrap();
    let rd_at = |now, r: u32| apic.msr_read(Time(now), 0x800 + (r >> 4)).unwrap() as u32;
    let wr_at = |now, r: u32, v: u32| {
        apic.msr_write(Time(now), 0x800 + (r >> 4), v.into()).unwrap();
    };
    let (rd, wr) = (|r| rd_at(0, r), |r, v| wr_at(0, r, v));
    clear(&apic, &rd, &wr);
    set_up(&apic, &rd, &wr);
    assert_eq!(rd(reg::LDR), 1);
    calibrate(&apic, &rd_at, &wr_at);
    // setup_APIC_timer() with X86_FEATURE_TSC_DEADLINE_TIMER.
    wr(reg::LVT_TIMER, TIMER | 2 << 17);
    apic.set_tsc_deadline(Time(1_000_000_000), 3_000_000_000, x86defs::Rate::new(3, 1), 3_000_300_000);
    assert_eq!(apic.deadline(), Some(Time(1_000_100_002)));
}

#[test]
fn kexec_disables_and_enables_the_apic() {
    let apic = LocalApic::new(0, true);
    let (rd, wr) = (
        |r| read(&apic, r),
        |r, v| {
            write(&apic, r, v);
        },
    );
    // disable_local_APIC(), and the same again in the new kernel.
    for _ in 0..2 {
        clear(&apic, &rd, &wr);
        wr(reg::SVR, rd(reg::SVR) & !(1 << 8));
        apic.set_base_msr(apic.base_msr() & !(1 << 11), 40).unwrap();
        assert_eq!(apic.mmio_base(), None);
        apic.set_base_msr(apic.base_msr() & !0xffff_f000 | 1 << 11 | 0xfee0_0000, 40).unwrap();
        set_up(&apic, &rd, &wr);
    }
}

#[test]
fn wakeup_of_a_second_processor() {
    // wakeup_secondary_cpu_via_init(): INIT asserted, INIT de-asserted, SIPI twice.
    let sender = x2apic(0);
    let target = LocalApic::new(1, false);
    let send = |low: u64| {
        let effect = sender.msr_write(NOW, 0x830, 1 << 32 | low).unwrap();
        if let Effect::Ipi(Ipi { shorthand: Shorthand::None, message }) = effect {
            assert_eq!(message.destination, 1);
            target.receive(message.delivery, message.vector, message.trigger);
        }
        effect
    };
    assert_eq!(ipi(send(0xc500)).message.delivery, DeliveryMode::Init);
    assert_eq!(send(0x8500), Effect::None);
    assert_eq!(ipi(send(0x069a)).message.delivery, DeliveryMode::StartUp);
    assert_eq!(ipi(send(0x069a)).message.delivery, DeliveryMode::StartUp);
    assert_eq!(target.take_startup(), Some(Startup::Init));
    target.init();
    assert_eq!(target.take_startup(), Some(Startup::Sipi(0x9a)));
    assert_eq!(target.take_startup(), None);
}
