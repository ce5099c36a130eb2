//! Interrupts from one processor to others.

use crate::rt::{
    BootInfo, apic, check, check_eq, cpu, interrupts, on_interrupt, rdmsr,
    smp::{self, FIXED, NMI, ipi},
    time, wrmsr,
};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const VECTOR: u8 = 0x62;
/// Processors that the cases have.
const CPUS: usize = 4;

static X2APIC: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);

fn eoi() {
    if X2APIC.load(Ordering::SeqCst) { wrmsr(apic::x2(apic::reg::EOI), 0) } else { apic::eoi() }
}

/// Takes interrupts until told to stop: one processor halted, the others in a loop.
fn listen(cpu: usize) {
    while !STOP.load(Ordering::SeqCst) {
        if cpu == 2 {
            cpu::sti_hlt();
        } else {
            cpu::sti();
            core::hint::spin_loop();
        }
    }
    cpu::cli();
}

/// The other processors listen while `body` runs, which must leave interrupts off.
fn with_listeners(body: impl FnOnce(&mut Counts)) {
    STOP.store(false, Ordering::SeqCst);
    for cpu in 1..CPUS {
        smp::run(cpu, listen);
    }
    let mut counts = Counts::now();
    cpu::sti();
    body(&mut counts);
    STOP.store(true, Ordering::SeqCst);
    // The halted one has to be told.
    if X2APIC.load(Ordering::SeqCst) {
        wrmsr(0x830, 2 << 32 | 0x4000 | u64::from(VECTOR))
    } else {
        ipi(2, FIXED | u32::from(VECTOR))
    }
    cpu::cli();
    (1..CPUS).for_each(smp::wait);
}

/// How many interrupts each processor must have had.
struct Counts([u32; CPUS]);

impl Counts {
    fn now() -> Self {
        Self(core::array::from_fn(|cpu| interrupts::count_on(cpu, VECTOR)))
    }

    /// The processors of the set `meant`, and no others, get one more interrupt.
    fn expect(&mut self, meant: u32, what: core::fmt::Arguments<'_>) {
        for (cpu, count) in self.0.iter_mut().enumerate() {
            *count += meant >> cpu & 1;
        }
        time::wait_for(2_000_000, || Self::now().0 == self.0);
        if meant == 0 {
            time::spin_us(500);
        }
        check_eq!(Self::now().0, self.0, "{what}");
    }
}

/// Fixed IPIs in xAPIC mode reach whom they name: by APIC id, by shorthand, by broadcast, and by logical id in the flat and in the cluster
/// model (SDM vol. 3A, 11.6.1 and 11.6.2); then the same in x2APIC mode (11.12.9, 11.12.10).
pub fn kinds(_: &BootInfo) {
    check_eq!(smp::start_all(), CPUS, "processors");
    on_interrupt(VECTOR, |_| eoi());
    let vector = u32::from(VECTOR);
    let send = |counts: &mut Counts, destination: u32, low: u32, meant: u32| {
        ipi(destination, low | FIXED | vector);
        counts.expect(meant, format_args!("ICR {destination:02x} {low:#x}"));
    };
    const LOGICAL: u32 = 1 << 11;
    const MYSELF: u32 = 1 << 18;
    const ALL: u32 = 2 << 18;
    const OTHERS: u32 = 3 << 18;
    with_listeners(|counts| {
        for cpu in 0..CPUS as u32 {
            send(counts, cpu, 0, 1 << cpu);
        }
        send(counts, 9, 0, 0);
        send(counts, 0xff, 0, 0b1111);
        // With a shorthand, the destination does not matter.
        send(counts, 3, MYSELF, 0b0001);
        send(counts, 3, ALL, 0b1111);
        send(counts, 3, OTHERS, 0b1110);
        // No logical ids yet.
        send(counts, 0x0f, LOGICAL, 0);
    });
    smp::on_all(CPUS, |cpu| apic::write(apic::reg::LDR, 1 << (24 + cpu)));
    with_listeners(|counts| {
        for set in [1, 2, 4, 8, 0b0110, 0b1011, 0b1111] {
            send(counts, set, LOGICAL, set);
        }
        send(counts, 0xf0, LOGICAL, 0);
        send(counts, 0xff, LOGICAL, 0b1111);
        // A lone destination may be found by lowest priority, too.
        send(counts, 4, LOGICAL | 1 << 8, 0b0100);
    });
    // Processors 0 and 1 in cluster 1, 2 and 3 in cluster 2.
    smp::on_all(CPUS, |cpu| {
        apic::write(apic::reg::DFR, 0x0fff_ffff);
        apic::write(apic::reg::LDR, (0x10 << (cpu / 2) | 1 << (cpu % 2)) << 24);
    });
    with_listeners(|counts| {
        send(counts, 0x11, LOGICAL, 0b0001);
        send(counts, 0x13, LOGICAL, 0b0011);
        send(counts, 0x22, LOGICAL, 0b1000);
        send(counts, 0x2f, LOGICAL, 0b1100);
        send(counts, 0x33, LOGICAL, 0);
        send(counts, 0xff, LOGICAL, 0b1111);
    });
    X2APIC.store(true, Ordering::SeqCst);
    smp::on_all(CPUS, |cpu| {
        apic::enable_x2();
        check_eq!(rdmsr(apic::x2(apic::reg::ID)), cpu as u64, "x2APIC id");
        check_eq!(rdmsr(apic::x2(apic::reg::LDR)), 1 << cpu, "logical x2APIC id");
    });
    let send = |counts: &mut Counts, destination: u32, low: u32, meant: u32| {
        wrmsr(0x830, u64::from(destination) << 32 | u64::from(low | FIXED | vector));
        counts.expect(meant, format_args!("x2APIC ICR {destination:08x} {low:#x}"));
    };
    with_listeners(|counts| {
        for cpu in 0..CPUS as u32 {
            send(counts, cpu, 0, 1 << cpu);
        }
        // An ordinary id in this mode, which nobody has.
        send(counts, 0xff, 0, 0);
        send(counts, u32::MAX, 0, 0b1111);
        send(counts, 7, MYSELF, 0b0001);
        send(counts, 7, ALL, 0b1111);
        send(counts, 7, OTHERS, 0b1110);
        wrmsr(0x83f, VECTOR.into());
        counts.expect(1, format_args!("self-IPI register"));
        for set in [1, 2, 4, 8, 0b0101, 0b1110] {
            send(counts, set, LOGICAL, set);
        }
        // Another cluster, and all of all clusters.
        send(counts, 1 << 16 | 0xf, LOGICAL, 0);
        send(counts, u32::MAX, LOGICAL, 0b1111);
        send(counts, 8, LOGICAL | 1 << 8, 0b1000);
    });
    check_eq!(smp::starts(1), 1, "nobody was restarted");
}

/// Lowest-priority delivery (SDM vol. 3A, 11.6.2.4): one of the processors that are named gets the interrupt, the one with the lowest
/// priority; those of the same priority share them.
pub fn lowest_priority(_: &BootInfo) {
    const LOWEST: u32 = 0x4900 | VECTOR as u32;
    check_eq!(smp::start_all(), CPUS, "processors");
    on_interrupt(VECTOR, |_| eoi());
    smp::on_all(CPUS, |cpu| {
        apic::write(apic::reg::LDR, 1 << (24 + cpu));
        apic::write(apic::reg::TPR, [0, 0x50, 0x20, 0x60][cpu]);
    });
    // Above the vector's class nobody takes it; 0x62 passes all of these.
    with_listeners(|counts| {
        for _ in 0..10 {
            ipi(0b1110, LOWEST);
            counts.expect(0b0100, format_args!("processor 2 has the lowest priority"));
        }
        for _ in 0..10 {
            ipi(0b1010, LOWEST);
            counts.expect(0b0010, format_args!("processor 1 has a lower priority than 3"));
        }
    });
    smp::on_all(CPUS, |_| apic::write(apic::reg::TPR, 0));
    let shares = |what: &str, send: &dyn Fn()| {
        with_listeners(|counts| {
            let before = Counts::now().0;
            for n in 1..=60 {
                send();
                let all = || Counts::now().0.iter().zip(before).map(|(now, then)| now - then).sum::<u32>();
                check!(time::wait_for(2_000_000, || all() == n), "{what}: one interrupt for each message, the {n}th");
            }
            let got: [u32; CPUS] = core::array::from_fn(|cpu| Counts::now().0[cpu] - before[cpu]);
            check_eq!(got[0], 0, "{what}: the sender is not among them");
            check!(got[1..].iter().all(|&n| n >= 10), "{what}: all have a share: {got:?}");
            *counts = Counts::now();
        });
    };
    shares("flat", &|| ipi(0b1110, LOWEST));
    X2APIC.store(true, Ordering::SeqCst);
    smp::on_all(CPUS, |_| apic::enable_x2());
    shares("x2APIC", &|| wrmsr(0x830, 0b1110 << 32 | u64::from(LOWEST)));
}

static NMIS: [AtomicU32; CPUS] = [const { AtomicU32::new(0) }; CPUS];

/// NMI IPIs reach processors with interrupts off in HLT and in a loop, and one in a loop without exits, and nobody else (SDM vol. 3A, 7.7,
/// 11.6.1).
pub fn nmi(_: &BootInfo) {
    check_eq!(smp::start_all(), CPUS, "processors");
    on_interrupt(2, |_| {
        NMIS[smp::this_cpu()].fetch_add(1, Ordering::SeqCst);
    });
    STOP.store(false, Ordering::SeqCst);
    for cpu in 1..CPUS {
        smp::run(cpu, |cpu| {
            cpu::cli();
            match cpu {
                1 => {
                    while !STOP.load(Ordering::SeqCst) {
                        cpu::hlt();
                    }
                }
                2 => {
                    cpu::sti();
                    // Without PAUSE, which might exit.
                    #[expect(clippy::missing_spin_loop, reason = "an NMI is to find it in a loop without exits")]
                    while !STOP.load(Ordering::SeqCst) {}
                    cpu::cli();
                }
                _ => {
                    while !STOP.load(Ordering::SeqCst) {
                        core::hint::spin_loop();
                    }
                }
            }
        });
    }
    let mut wanted = [0; CPUS];
    let mut send = |destination: u32, low: u32, meant: u32| {
        for (cpu, count) in wanted.iter_mut().enumerate() {
            *count += meant >> cpu & 1;
        }
        // Time for processor 1 to halt. The vector of an NMI is ignored.
        time::spin_us(1000);
        ipi(destination, low | NMI | 0xaa);
        let now = || -> [u32; CPUS] { core::array::from_fn(|cpu| NMIS[cpu].load(Ordering::SeqCst)) };
        time::wait_for(2_000_000, || now() == wanted);
        check_eq!(now(), wanted, "NMI to {destination:#x} {low:#x}");
    };
    for cpu in 1..CPUS as u32 {
        send(cpu, 0, 1 << cpu);
    }
    send(0, 3 << 18, 0b1110);
    send(0, 2 << 18, 0b1111);
    send(0xff, 0, 0b1111);
    STOP.store(true, Ordering::SeqCst);
    time::spin_us(1000);
    // The halted one has to be told.
    ipi(1, NMI);
    (1..CPUS).for_each(smp::wait);
}
