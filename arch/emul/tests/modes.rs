//! Addresses and operand sizes outside of 64-bit mode, segment checks, stacks, segment loads and port rights.

mod common;

use common::{Event, Rights, TestCpu};
use emul::{Outcome, emulate};
use x86defs::{
    Cr0, Cr4, DescriptorTable, Efer, Exception, Gpr, Rflags, Segment, SegmentAttributes, SegmentRegister, Width, vector,
};

/// Runs `bytes` and demands that they complete; returns RIP and RFLAGS.
#[track_caller]
fn done(cpu: &mut TestCpu, bytes: &[u8]) -> (u64, u64) {
    match emulate(cpu, bytes) {
        Outcome::Done { rip, rflags } => (rip, rflags),
        other => panic!("{other:x?}"),
    }
}

#[track_caller]
fn fault(cpu: &mut TestCpu, bytes: &[u8]) -> Exception {
    let before = cpu.clone();
    match emulate(cpu, bytes) {
        Outcome::Fault(exception) => {
            assert_eq!(cpu.gprs, before.gprs, "a fault changes no register");
            assert!(cpu.pages == before.pages, "a fault changes no memory");
            exception
        }
        other => panic!("{other:x?}"),
    }
}

#[test]
fn real_mode_addresses_are_segment_times_sixteen_plus_sixteen_bits() {
    let mut cpu = TestCpu::real();
    cpu.map(0x1_0000, 0x2_0000, Rights::ReadWrite);
    *cpu.segment_mut(SegmentRegister::Ds) = Segment::real_mode(0x1234, 3);
    // mov [bx+si-2], ax: the sum wraps at 64 KiB.
    cpu.set(Gpr::Rbx, 0xdead_fff0).set(Gpr::Rsi, 0x20).set(Gpr::Rax, 0x1234_5678);
    let (rip, _) = done(&mut cpu, &[0x89, 0x40, 0xfe]);
    assert_eq!(rip, 0x1003);
    assert_eq!(cpu.value(0x12340 + 0xe, Width::Dword), 0x5678);
    // 67: a 32-bit address in a 16-bit segment; mov dword [ecx], imm32 by 66.
    cpu.set(Gpr::Rcx, 0x100);
    done(&mut cpu, &[0x66, 0x67, 0xc7, 0x01, 4, 3, 2, 1]);
    assert_eq!(cpu.value(0x12440, Width::Dword), 0x0102_0304);
    cpu.set(Gpr::Rcx, 0x1_0000);
    assert_eq!(fault(&mut cpu, &[0x67, 0x89, 0x01]), Exception::GP, "beyond the limit of 64 KiB");
    // moffs with a segment override: mov al, es:[0x1235].
    *cpu.segment_mut(SegmentRegister::Es) = Segment::real_mode(0x1000, 3);
    cpu.put(0x1_1235, &[0xab]).set(Gpr::Rax, 0xffff_ffff_ffff_ff00);
    done(&mut cpu, &[0x26, 0xa0, 0x35, 0x12]);
    assert_eq!(cpu.gprs[Gpr::Rax], 0xffff_ffff_ffff_ffab);
}

#[test]
fn the_last_byte_must_be_within_the_limit() {
    let mut cpu = TestCpu::real();
    cpu.map(0, 0x2_0000, Rights::ReadWrite);
    cpu.set(Gpr::Rbx, 0xffff);
    assert_eq!(fault(&mut cpu, &[0x8b, 0x07]), Exception::GP, "a word at ffff");
    done(&mut cpu, &[0x8a, 0x07]);
    // By BP it is the stack segment, and #SS.
    cpu.set(Gpr::Rbp, 0xfffe);
    assert_eq!(fault(&mut cpu, &[0x8b, 0x46, 0x01]), Exception::ss(0));
    done(&mut cpu, &[0x8b, 0x46, 0x00]);
}

#[test]
fn unreal_mode_uses_the_limit_that_was_loaded_in_protected_mode() {
    let mut cpu = TestCpu::real();
    cpu.segment_mut(SegmentRegister::Ds).limit = 0xffff_ffff;
    cpu.device = 0xfee0_0000..0xfee0_1000;
    cpu.set(Gpr::Rbx, 0xfee0_0300);
    done(&mut cpu, &[0x66, 0x67, 0x89, 0x03]);
    assert_eq!(cpu.log, [Event::Write(0xfee0_0300, Width::Dword, 0)]);
    // MOV DS in real mode changes the base alone.
    cpu.set(Gpr::Rax, 0x20);
    done(&mut cpu, &[0x8e, 0xd8]);
    let ds = cpu.segments[SegmentRegister::Ds as usize];
    assert_eq!((ds.selector, ds.base, ds.limit), (0x20, 0x200, 0xffff_ffff));
}

#[test]
fn a_big_code_segment_keeps_its_size_in_real_mode() {
    let mut cpu = TestCpu::real();
    cpu.map(0x2000, 0x1000, Rights::ReadWrite);
    cpu.segment_mut(SegmentRegister::Cs).attributes = SegmentAttributes(0x49b);
    cpu.set(Gpr::Rax, 0x1122_3344).set(Gpr::Rcx, 0x2000);
    done(&mut cpu, &[0x89, 0x01]);
    assert_eq!(cpu.value(0x2000, Width::Dword), 0x1122_3344);
}

#[test]
fn protected_mode_checks_types_and_presence() {
    let mut cpu = TestCpu::protected32();
    cpu.map(0x2000, 0x1000, Rights::ReadWrite);
    cpu.set(Gpr::Rcx, 0x2000);
    let store: &[u8] = &[0x89, 0x01];
    let load: &[u8] = &[0x8b, 0x01];
    let set = |cpu: &mut TestCpu, attributes| cpu.segment_mut(SegmentRegister::Ds).attributes = SegmentAttributes(attributes);
    set(&mut cpu, 0xc91);
    assert_eq!(fault(&mut cpu, store), Exception::GP, "read-only data");
    done(&mut cpu, load);
    set(&mut cpu, 0xc99);
    assert_eq!(fault(&mut cpu, load), Exception::GP, "execute-only code");
    set(&mut cpu, 0xc9b);
    done(&mut cpu, load);
    assert_eq!(fault(&mut cpu, store), Exception::GP, "code is not writable");
    // CS override on a store.
    set(&mut cpu, 0xc93);
    assert_eq!(fault(&mut cpu, &[0x2e, 0x89, 0x01]), Exception::GP);
    done(&mut cpu, &[0x2e, 0x8b, 0x01]);
    set(&mut cpu, SegmentAttributes::UNUSABLE.0 | 0xc93);
    assert_eq!(fault(&mut cpu, load), Exception::GP, "a null selector was loaded");
    // 64-bit mode has none of these checks.
    let mut cpu64 = TestCpu::long();
    cpu64.map(0x2000, 0x1000, Rights::ReadWrite);
    cpu64.set(Gpr::Rcx, 0x2000);
    cpu64.segment_mut(SegmentRegister::Ds).attributes = SegmentAttributes::UNUSABLE;
    cpu64.segment_mut(SegmentRegister::Ds).base = 0x5555_0000;
    done(&mut cpu64, store);
}

#[test]
fn expand_down_segments_are_valid_above_their_limit() {
    for (attributes, top) in [(0x97u16, 0xffffu64), (0x497, 0xffff_ffff)] {
        let mut cpu = TestCpu::protected32();
        cpu.map(0x1000, 0x3000, Rights::ReadWrite);
        let ds = cpu.segment_mut(SegmentRegister::Ds);
        ds.attributes = SegmentAttributes(attributes);
        ds.limit = 0x1fff;
        cpu.set(Gpr::Rcx, 0x1fff);
        assert_eq!(fault(&mut cpu, &[0x8a, 0x01]), Exception::GP, "at the limit");
        cpu.set(Gpr::Rcx, 0x2000);
        done(&mut cpu, &[0x8a, 0x01]);
        cpu.set(Gpr::Rcx, top - 2);
        assert_eq!(fault(&mut cpu, &[0x8b, 0x01]), Exception::GP, "past the upper bound");
    }
}

#[test]
fn linear_addresses_wrap_at_four_gigabytes() {
    let mut cpu = TestCpu::protected32();
    cpu.map(0, 0x1000, Rights::ReadWrite).map(0xffff_f000, 0x1000, Rights::ReadWrite);
    let ds = cpu.segment_mut(SegmentRegister::Ds);
    ds.base = 0xffff_ff00;
    cpu.set(Gpr::Rcx, 0xfe).set(Gpr::Rax, 0x4433_2211);
    done(&mut cpu, &[0x89, 0x01]);
    assert_eq!(cpu.bytes(0xffff_fffe, 2), [0x11, 0x22]);
    assert_eq!(cpu.bytes(0, 2), [0x33, 0x44]);
}

#[test]
fn non_canonical_addresses_fault_by_segment() {
    let mut cpu = TestCpu::long();
    cpu.set(Gpr::Rax, 0x8000_0000_0000).set(Gpr::Rbp, 0x8000_0000_0000).set(Gpr::Rcx, 0x7fff_ffff_fffd);
    assert_eq!(fault(&mut cpu, &[0x8b, 0x00]), Exception::GP);
    assert_eq!(fault(&mut cpu, &[0x8b, 0x45, 0x00]), Exception::ss(0));
    // The DS prefix is ignored, so it stays the stack segment.
    assert_eq!(fault(&mut cpu, &[0x3e, 0x8b, 0x45, 0x00]), Exception::ss(0));
    assert_eq!(fault(&mut cpu, &[0x8b, 0x01]), Exception::GP, "the last byte counts");
    // With 57-bit addresses the same is canonical: the page is not there.
    cpu.cr4 |= Cr4::LA57.bits();
    assert_eq!(fault(&mut cpu, &[0x8b, 0x00]).vector, vector::PF);
}

#[test]
fn a_fault_in_the_second_page_leaves_the_first_alone() {
    let mut cpu = TestCpu::long();
    cpu.map(0x2000, 0x1000, Rights::ReadWrite).map(0x3000, 0x1000, Rights::ReadOnly);
    cpu.set(Gpr::Rcx, 0x2ffe).set(Gpr::Rax, u64::MAX);
    assert_eq!(fault(&mut cpu, &[0x89, 0x01]), Exception::pf(0x3000, 3));
    assert_eq!(fault(&mut cpu, &[0x01, 0x01]), Exception::pf(0x3000, 3));
    done(&mut cpu, &[0x8b, 0x01]);
}

#[test]
fn alignment_checks_need_cpl_3_cr0_am_and_ac() {
    let mut cpu = TestCpu::long();
    cpu.map(0x2000, 0x1000, Rights::ReadWrite);
    cpu.set(Gpr::Rcx, 0x2002);
    cpu.rflags |= Rflags::AC.bits();
    done(&mut cpu, &[0x8b, 0x01]);
    cpu.cpl = 3;
    assert_eq!(fault(&mut cpu, &[0x8b, 0x01]), Exception::ac());
    done(&mut cpu, &[0x66, 0x8b, 0x01]);
    cpu.cr0 &= !Cr0::AM.bits();
    done(&mut cpu, &[0x8b, 0x01]);
}

#[test]
fn the_stack_is_as_wide_as_ss_says() {
    // push dword [ecx] on a 16-bit stack: SP wraps, the upper half of ESP stays.
    let mut cpu = TestCpu::protected32();
    cpu.map(0, 0x2_0000, Rights::ReadWrite).put(0x2000, &[1, 2, 3, 4]);
    cpu.segment_mut(SegmentRegister::Ss).attributes = SegmentAttributes(0x93);
    cpu.set(Gpr::Rcx, 0x2000).set(Gpr::Rsp, 0xabcd_0002);
    assert_eq!(done(&mut cpu, &[0xff, 0x31]).0, 0x1002);
    assert_eq!(cpu.gprs[Gpr::Rsp], 0xabcd_fffe);
    assert_eq!(cpu.value(0xfffe, Width::Dword), 0x0403_0201);
    // pop it again, to [esp+4] with the incremented ESP, by a 32-bit stack.
    cpu.segment_mut(SegmentRegister::Ss).attributes = SegmentAttributes(0xc93);
    cpu.set(Gpr::Rsp, 0x2000);
    done(&mut cpu, &[0x8f, 0x44, 0x24, 0x04]);
    assert_eq!(cpu.gprs[Gpr::Rsp], 0x2004);
    assert_eq!(cpu.value(0x2008, Width::Dword), 0x0403_0201);
    // A pop whose target faults leaves ESP.
    cpu.map(0x3000, 0x1000, Rights::ReadOnly).set(Gpr::Rcx, 0x3000);
    assert_eq!(fault(&mut cpu, &[0x8f, 0x01]), Exception::pf(0x3000, 3));
}

#[test]
fn near_branches_through_memory() {
    let mut cpu = TestCpu::protected32();
    cpu.map(0x2000, 0x1000, Rights::ReadWrite).put(0x2000, &[0x78, 0x56, 0x34, 0x12]);
    cpu.set(Gpr::Rcx, 0x2000).set(Gpr::Rsp, 0x2800);
    assert_eq!(done(&mut cpu, &[0xff, 0x21]).0, 0x1234_5678);
    assert_eq!(done(&mut cpu, &[0xff, 0x11]).0, 0x1234_5678);
    assert_eq!((cpu.gprs[Gpr::Rsp], cpu.value(0x27fc, Width::Dword)), (0x27fc, 0x1002));
    assert_eq!(done(&mut cpu, &[0xc3]).0, 0x1002);
    // 66: a 16-bit target.
    assert_eq!(done(&mut cpu, &[0x66, 0xff, 0x21]).0, 0x5678);
    cpu.segment_mut(SegmentRegister::Cs).limit = 0xffff;
    assert_eq!(fault(&mut cpu, &[0xff, 0x11]), Exception::GP, "beyond the code segment");
}

/// A GDT at 0x8000: null, flat data, flat code, data DPL 3 (not accessed, 3 pages), not present, a TSS.
fn with_gdt(mut cpu: TestCpu) -> TestCpu {
    cpu.map(0x8000, 0x1000, Rights::ReadWrite);
    cpu.gdtr = DescriptorTable { base: 0x8000, limit: 6 * 8 - 1 };
    let descriptors: [u64; 6] =
        [0, 0x00cf_9300_0000_ffff, 0x00cf_9b00_0000_ffff, 0x12c0_f234_5678_0002, 0x00cf_1300_0000_ffff, 0x0000_8b00_0000_0067];
    for (i, descriptor) in descriptors.iter().enumerate() {
        cpu.put(0x8000 + 8 * i as u64, &descriptor.to_le_bytes());
    }
    cpu.map(0x2000, 0x1000, Rights::ReadWrite).set(Gpr::Rcx, 0x2000);
    cpu
}

#[test]
fn segment_registers_load_from_the_gdt() {
    let cpu = with_gdt(TestCpu::protected32());
    let load_ds: &[u8] = &[0x8e, 0x19];
    let load_ss: &[u8] = &[0x8e, 0x11];
    let with = |selector: u16, code: &[u8], cpl: u8| {
        let mut cpu = cpu.clone();
        cpu.cpl = cpl;
        cpu.put(0x2000, &selector.to_le_bytes());
        (emulate(&mut cpu, code), cpu)
    };
    let (outcome, after) = with(0x1b, load_ds, 3);
    assert_eq!(outcome, Outcome::Done { rip: 0x1002, rflags: 2 });
    let expected = Segment { selector: 0x1b, attributes: SegmentAttributes(0xcf3), limit: 0x2fff, base: 0x1234_5678 };
    assert_eq!(after.segments[SegmentRegister::Ds as usize], expected);
    assert_eq!(after.value(0x801d, Width::Byte), 0xf3, "the accessed bit is set in the table");
    let faults = [
        (8, load_ds, 3, Exception::gp(8), "DPL 0 is not for CPL 3"),
        (0x0b, load_ds, 0, Exception::gp(8), "nor for RPL 3"),
        (0x20, load_ds, 0, Exception { vector: vector::NP, error_code: Some(0x20), cr2: None }, "not present"),
        (0x20, load_ss, 0, Exception::ss(0x20), "not present, for SS"),
        (0x28, load_ds, 0, Exception::gp(0x28), "a system segment"),
        (0x10, load_ss, 0, Exception::gp(0x10), "code is no stack"),
        (0x30, load_ds, 0, Exception::gp(0x30), "beyond the table"),
        (0x0c, load_ds, 0, Exception::gp(0x0c), "no LDT"),
        (0, load_ss, 0, Exception::GP, "a null SS"),
    ];
    for (selector, code, cpl, exception, why) in faults {
        let (outcome, _) = with(selector, code, cpl);
        // The LDT of `TestCpu` is a data segment with base 0, whose page is not there.
        if selector == 0x0c {
            assert!(matches!(outcome, Outcome::Fault(_)));
            continue;
        }
        assert_eq!(outcome, Outcome::Fault(exception), "{why}");
    }
    let (outcome, after) = with(3, load_ds, 0);
    assert!(matches!(outcome, Outcome::Done { .. }));
    assert!(after.segments[SegmentRegister::Ds as usize].attributes.unusable());
    assert_eq!(after.segments[SegmentRegister::Ds as usize].selector, 3);
    // A null SS is fine in 64-bit mode below CPL 3.
    let mut cpu = with_gdt(TestCpu::long());
    done(&mut cpu, load_ss);
    assert!(cpu.segments[SegmentRegister::Ss as usize].attributes.unusable());
}

#[test]
fn far_pointers_and_pushed_selectors() {
    let mut cpu = with_gdt(TestCpu::protected32());
    cpu.put(0x2000, &[0x78, 0x56, 0x34, 0x12, 0x08, 0x00]);
    // les eax, [ecx]
    done(&mut cpu, &[0xc4, 0x01]);
    assert_eq!(cpu.gprs[Gpr::Rax], 0x1234_5678);
    assert_eq!(cpu.segments[SegmentRegister::Es as usize].selector, 8);
    // push es; pop fs
    cpu.set(Gpr::Rsp, 0x2100);
    done(&mut cpu, &[0x06]);
    assert_eq!((cpu.gprs[Gpr::Rsp], cpu.value(0x20fc, Width::Dword)), (0x20fc, 8));
    done(&mut cpu, &[0x0f, 0xa1]);
    assert_eq!(cpu.segments[SegmentRegister::Fs as usize], Segment::flat(8, 3, false));
    assert_eq!(cpu.gprs[Gpr::Rsp], 0x2100);
}

#[test]
fn virtual_8086_mode_has_16_bit_segments_of_its_own() {
    let mut cpu = TestCpu::virtual8086();
    cpu.map(0, 0x2_0000, Rights::ReadWrite);
    cpu.set(Gpr::Rax, 0x1000).set(Gpr::Rbx, 0x10);
    done(&mut cpu, &[0x8e, 0xd8]);
    let expected = Segment { selector: 0x1000, base: 0x1_0000, limit: 0xffff, attributes: SegmentAttributes(0xf3) };
    assert_eq!(cpu.segments[SegmentRegister::Ds as usize], expected);
    done(&mut cpu, &[0x88, 0x07]);
    assert_eq!(cpu.value(0x1_0010, Width::Byte), 0);
    // AVX does not exist here.
    assert_eq!(fault(&mut cpu, &[0xc5, 0xf8, 0x28, 0x07]), Exception::UD);
}

#[test]
fn ports_go_by_iopl_and_the_tss_bitmap() {
    let mut cpu = TestCpu::long();
    cpu.map(0x9000, 0x1000, Rights::ReadWrite);
    let tss = Segment { selector: 0x28, attributes: SegmentAttributes(0x8b), limit: 0x67 + 0x20, base: 0x9000 };
    *cpu.segment_mut(SegmentRegister::Tr) = tss;
    cpu.put(0x9066, &[0x68, 0]).put(0x9068, &[0xff; 0x20]);
    // Ports 0x60..=0x63 are free.
    cpu.put(0x9068 + 0xc, &[0xf0]);
    cpu.answers.extend([0x1234_5678; 4]);
    cpu.set(Gpr::Rdx, 0xffff_0060).set(Gpr::Rax, u64::MAX);

    done(&mut cpu, &[0xec]);
    assert_eq!(cpu.gprs[Gpr::Rax], u64::MAX << 8 | 0x78);
    cpu.cpl = 3;
    done(&mut cpu, &[0xed]);
    assert_eq!(cpu.gprs[Gpr::Rax], 0x1234_5678, "a 32-bit IN clears the upper half");
    done(&mut cpu, &[0x66, 0xe7, 0x62]);
    assert_eq!(fault(&mut cpu, &[0xe5, 0x61]), Exception::GP, "port 64 is not");
    assert_eq!(fault(&mut cpu, &[0xe4, 0x64]), Exception::GP);
    cpu.set(Gpr::Rdx, 0xf8);
    assert_eq!(fault(&mut cpu, &[0xec]), Exception::GP, "the map's last byte is not for use");
    cpu.rflags |= Rflags::IOPL.bits();
    done(&mut cpu, &[0xe4, 0x64]);
    assert_eq!(
        cpu.log,
        [
            Event::In(0x60, Width::Byte),
            Event::In(0x60, Width::Dword),
            Event::Out(0x62, Width::Word, 0x5678),
            Event::In(0x64, Width::Byte),
        ]
    );
    // In virtual-8086 mode IOPL does not help.
    let mut cpu = TestCpu::virtual8086();
    cpu.rflags |= Rflags::IOPL.bits();
    assert_eq!(fault(&mut cpu, &[0xec]), Exception::GP);
}

#[test]
fn compatibility_mode_is_32_bit() {
    let mut cpu = TestCpu::protected32();
    cpu.efer = (Efer::LME | Efer::LMA).bits();
    cpu.map(0x2000, 0x1000, Rights::ReadWrite);
    cpu.set(Gpr::Rcx, 0xffff_ffff_0000_2000).set(Gpr::Rax, u64::MAX);
    // 48 is DEC EAX here, so this is no REX prefix: mov [ecx], al alone.
    done(&mut cpu, &[0x88, 0x01]);
    assert_eq!(cpu.value(0x2000, Width::Qword), 0xff);
    done(&mut cpu, &[0x48]);
    assert_eq!(cpu.gprs[Gpr::Rax], 0xffff_fffe);
}

#[test]
fn vector_moves_need_their_control_bits() {
    let mut cpu = TestCpu::long();
    cpu.map(0x2000, 0x1000, Rights::ReadWrite);
    cpu.put(0x2010, &[7; 16]).set(Gpr::Rcx, 0x2010);
    let movaps: &[u8] = &[0x0f, 0x28, 0x01];
    let vmovaps: &[u8] = &[0xc5, 0xf8, 0x28, 0x01];
    cpu.vectors.as_mut().unwrap()[0] = [0, 99];
    done(&mut cpu, movaps);
    assert_eq!(cpu.vectors.unwrap()[0], [u128::from_le_bytes([7; 16]), 99]);
    done(&mut cpu, vmovaps);
    assert_eq!(cpu.vectors.unwrap()[0], [u128::from_le_bytes([7; 16]), 0]);
    cpu.cr0 |= Cr0::TS.bits();
    assert_eq!(fault(&mut cpu, movaps), Exception::NM);
    assert_eq!(fault(&mut cpu, vmovaps), Exception::NM);
    cpu.cr0 |= Cr0::EM.bits();
    assert_eq!(fault(&mut cpu, movaps), Exception::UD);
    cpu.cr0 &= !(Cr0::EM | Cr0::TS).bits();
    cpu.xcr0 = 3;
    assert_eq!(fault(&mut cpu, vmovaps), Exception::UD);
    cpu.cr4 &= !Cr4::OSFXSR.bits();
    assert_eq!(fault(&mut cpu, movaps), Exception::UD);
    cpu.vectors = None;
    cpu.cr4 |= Cr4::OSFXSR.bits();
    assert!(matches!(emulate(&mut cpu, movaps), Outcome::Unsupported(bytes) if bytes.as_slice() == movaps));
}
