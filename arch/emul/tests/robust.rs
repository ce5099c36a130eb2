//! No bytes, registers or modes make the emulator panic, or loop longer than its budget.

mod common;

use common::{Rights, TestCpu};
use emul::{Outcome, emulate, emulate_by_full_decoder};
use proptest::prelude::*;
use x86defs::{Gpr, Segment, SegmentAttributes};

fn any_cpu() -> impl Strategy<Value = TestCpu> {
    let cpu = prop_oneof![
        Just(TestCpu::long()),
        Just(TestCpu::protected32()),
        Just(TestCpu::protected16()),
        Just(TestCpu::real()),
        Just(TestCpu::virtual8086()),
    ];
    // Registers near the mapped pages and anywhere.
    let register = prop_oneof![0u64..0x8000, 0xffff_f000u64..0x1_0000_1000, any::<u64>()];
    let segment =
        (any::<u16>(), 0u16..0x2000, any::<u32>(), prop_oneof![Just(0u64), any::<u32>().prop_map(u64::from), any::<u64>()]);
    (
        cpu,
        prop::collection::vec(register, 16),
        any::<u32>(),
        prop::option::of(prop::collection::vec(segment, 8)),
        any::<bool>(),
        prop::collection::vec(any::<u8>(), 64),
    )
        .prop_map(|(mut cpu, registers, flags, segments, user, memory)| {
            for (i, value) in registers.into_iter().enumerate() {
                cpu.gprs[Gpr::from_index(i as u8)] = value;
            }
            cpu.rflags |= u64::from(flags) & !(1 << 17);
            if let Some(segments) = segments {
                // CS stays: it makes the mode.
                for (i, (selector, attributes, limit, base)) in segments.into_iter().enumerate() {
                    if i != 1 {
                        cpu.segments[i] = Segment { selector, attributes: SegmentAttributes(attributes), limit, base };
                    }
                }
            }
            cpu.cpl = cpu.cpl.max(if user { 3 } else { 0 });
            cpu.gdtr.limit = 0xffff;
            cpu.map(0, 0x4000, Rights::ReadWrite).map(0x4000, 0x1000, Rights::ReadOnly).map(
                0xffff_f000,
                0x1000,
                Rights::ReadWrite,
            );
            for at in (0x1000..0x4000).step_by(64) {
                cpu.put(at, &memory);
            }
            cpu.device = 0x5000..0x7000;
            cpu
        })
}

/// Bytes that are mostly instructions: prefixes, an opcode, operands.
fn any_code() -> impl Strategy<Value = Vec<u8>> {
    let prefix =
        prop::sample::select(vec![0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x48, 0x41, 0xc5, 0xc4]);
    let opcode = prop_oneof![
        any::<u8>().prop_map(|b| vec![b]),
        any::<u8>().prop_map(|b| vec![0x0f, b]),
        any::<u8>().prop_map(|b| vec![0x0f, 0x38, b]),
    ];
    (prop::collection::vec(prefix, 0..4), opcode, prop::collection::vec(any::<u8>(), 0..14)).prop_map(
        |(mut code, opcode, rest)| {
            code.extend(opcode);
            code.extend(rest);
            code.truncate(15);
            code
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn nothing_panics_or_runs_away(cpu in any_cpu(), code in any_code()) {
        let mut by_hand = cpu.clone();
        let outcome = emulate(&mut by_hand, &code);
        // A vector move takes four accesses, an iteration of a string two, which may each come in eight pieces; a locked update
        // gives up after 64.
        prop_assert!(by_hand.log.len() <= 2000, "{} accesses", by_hand.log.len());
        prop_assert!(by_hand.walks <= 1000, "{} translations", by_hand.walks);
        // Without having completed anything, an instruction changes nothing.
        if let Outcome::Unsupported(_) = outcome {
            prop_assert_eq!(by_hand.gprs, cpu.gprs);
            prop_assert!(by_hand.pages == cpu.pages);
        }
        // And both decoders agree, whatever the bytes.
        let mut in_full = cpu;
        let full = emulate_by_full_decoder(&mut in_full, &code);
        let same = match (outcome, full) {
            // They may have fetched differently far.
            (Outcome::Unsupported(_), Outcome::Unsupported(_)) => true,
            (a, b) => a == b,
        };
        prop_assert!(same, "{:x?} by hand, {:x?} in full", outcome, full);
        prop_assert_eq!(by_hand.gprs, in_full.gprs);
        prop_assert_eq!(by_hand.log, in_full.log);
    }
}
