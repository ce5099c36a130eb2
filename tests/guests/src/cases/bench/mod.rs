//! What operations cost, in TSC ticks: exact instruction counts when the emulator counts instructions.
//!
//! Prints `bench NAME TICKS` lines. The same image runs under Bulkhead, under another hypervisor and on the bare (emulated) machine, so it
//! asks for nothing that all of these lack, and leaves out what this machine has not got. Options on the command line:
//!
//! - `part=single` (the default), `pair` (two processors, or the number in `cpus=`), `lock`: which set of operations
//! - `filter=STRING`: only those whose name contains it, or one of several with commas between them
//! - `on=bare`: there is no hypervisor
//! - `pm=PORT`: the ACPI PM timer's port, in hexadecimal
//! - `trace=NAME`: repeat this one for ever; `trace=all`: each once, between two of Bochs' magic breakpoints

mod pair;
mod single;
mod timer;

use crate::rt::{BootInfo, println};
use core::arch::asm;

const ROUNDS: usize = 64;

/// Which of the measurements are wanted, and what measuring itself costs.
pub struct Bench<'a> {
    boot: &'a BootInfo,
    filter: &'a str,
    trace: Option<&'a str>,
    bare: bool,
    /// Ticks between two readings of the TSC.
    empty: u64,
}

impl<'a> Bench<'a> {
    fn new(boot: &'a BootInfo) -> Self {
        let mut samples = [0u64; ROUNDS];
        for sample in &mut samples {
            let start = ticks();
            *sample = ticks() - start;
        }
        let filter = boot.option("filter").unwrap_or("");
        Self { boot, filter, trace: boot.option("trace"), bare: boot.option("on") == Some("bare"), empty: median(&mut samples) }
    }

    /// A number in hexadecimal from the command line.
    fn number(&self, key: &str, default: u32) -> u32 {
        self.boot.option(key).and_then(|v| u32::from_str_radix(v, 16).ok()).unwrap_or(default)
    }

    /// True if the operation is to be measured here and now; one that is to be traced ends here.
    #[inline(always)]
    fn wants(&self, name: &str, mut body: impl FnMut()) -> bool {
        let Some(trace) = self.trace else { return self.filter.split(',').any(|part| name.contains(part)) };
        if trace == name || trace == "all" {
            for _ in 0..ROUNDS / 4 {
                body();
            }
            println!("trace {name}");
            loop {
                breakpoint();
                body();
                if trace == "all" {
                    breakpoint();
                    break;
                }
            }
        }
        false
    }

    /// Prints the median of the ticks that `body` takes, less what reading the TSC twice takes.
    #[inline(always)]
    fn measure(&self, name: &str, mut body: impl FnMut()) {
        self.measure_after(name, || (), |()| body());
    }

    /// The same; `prepare` runs before each round, and makes what `body` takes.
    #[inline(always)]
    fn measure_after<T>(&self, name: &str, mut prepare: impl FnMut() -> T, mut body: impl FnMut(T)) {
        let mut both = || body(prepare());
        if self.wants(name, &mut both) {
            let mut samples = [0u64; ROUNDS];
            for sample in &mut samples {
                let prepared = prepare();
                let start = ticks();
                body(prepared);
                *sample = ticks() - start;
            }
            self.report(name, &mut samples);
        }
    }

    /// Prints the median of ticks that include reading the TSC twice.
    fn report(&self, name: &str, samples: &mut [u64]) {
        println!("bench {name} {}", median(samples).saturating_sub(self.empty));
    }
}

/// The TSC, in one piece: what the compiler put between its instructions would be measured here and not there.
#[inline(always)]
fn ticks() -> u64 {
    let ticks;
    // SAFETY: reads the TSC. That it may touch memory, as the compiler must assume, keeps it in its place.
    unsafe { asm!("rdtsc", "shl rdx, 32", "or rax, rdx", out("rax") ticks, out("rdx") _, options(nostack)) };
    ticks
}

fn median(samples: &mut [u64]) -> u64 {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

/// Where Bochs' debugger stops; nothing, to everybody else.
#[inline(always)]
fn breakpoint() {
    // SAFETY: exchanges a register with itself.
    unsafe { asm!("xchg bx, bx", options(nomem, nostack, preserves_flags)) };
}

pub fn run(boot: &BootInfo) {
    let bench = Bench::new(boot);
    match boot.option("part") {
        Some("pair") => pair::ping_pong(&bench),
        Some("lock") => pair::lock(&bench),
        _ => {
            single::ports(&bench);
            single::processor(&bench);
            single::memory(&bench);
            single::xapic(&bench);
            timer::run(&bench, timer::Mode::XApic);
            single::x2apic(&bench);
        }
    }
}
