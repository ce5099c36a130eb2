//! What a device sees: how often, how wide and in which order it is touched; REP strings; locks; instruction fetch.

mod common;

use common::{Event, Rights, TestCpu};
use emul::{Outcome, emulate, emulate_by_full_decoder};
use x86defs::{Exception, Gpr, Rflags, SegmentRegister, Width};

const DEVICE: u64 = 0xfee0_0000;

fn with_device() -> TestCpu {
    let mut cpu = TestCpu::long();
    cpu.device = DEVICE..DEVICE + 0x1000;
    cpu.map(0x2000, 0x4000, Rights::ReadWrite).set(Gpr::Rdi, DEVICE).set(Gpr::Rsi, 0x2000).set(Gpr::Rcx, DEVICE);
    cpu
}

#[track_caller]
fn done(cpu: &mut TestCpu, bytes: &[u8]) -> u64 {
    match emulate(cpu, bytes) {
        Outcome::Done { rip, .. } => rip,
        other => panic!("{other:x?}"),
    }
}

#[test]
fn one_access_of_the_instructions_width() {
    let mut cpu = with_device();
    cpu.answers.extend([0x11, 0x8000_0000, 0xff00]);
    done(&mut cpu, &[0x8a, 0x41, 0x20]); // mov al, [rcx+0x20]
    done(&mut cpu, &[0x48, 0x63, 0x01]); // movsxd rax, dword [rcx]
    assert_eq!(cpu.gprs[Gpr::Rax], 0xffff_ffff_8000_0000);
    done(&mut cpu, &[0x66, 0x8b, 0x01]); // mov ax, [rcx]
    done(&mut cpu, &[0x48, 0xc7, 0x41, 0x08, 0xff, 0xff, 0xff, 0xff]); // mov qword [rcx+8], -1
    done(&mut cpu, &[0xc6, 0x01, 0x80]);
    assert_eq!(
        cpu.log,
        [
            Event::Read(DEVICE + 0x20, Width::Byte),
            Event::Read(DEVICE, Width::Dword),
            Event::Read(DEVICE, Width::Word),
            Event::Write(DEVICE + 8, Width::Qword, u64::MAX),
            Event::Write(DEVICE, Width::Byte, 0x80),
        ]
    );
}

#[test]
fn read_modify_write_reads_once_and_writes_once() {
    let mut cpu = with_device();
    cpu.answers.extend([0x0f, 0x10, 5, 7]);
    done(&mut cpu, &[0x83, 0x09, 0x70]); // or dword [rcx], 0x70
    done(&mut cpu, &[0xf0, 0x83, 0x21, 0x10]); // lock and dword [rcx], 0x10
    done(&mut cpu, &[0x87, 0x01]); // xchg [rcx], eax
    assert_eq!(cpu.gprs[Gpr::Rax], 5);
    done(&mut cpu, &[0x0f, 0xba, 0x21, 0x03]); // bt dword [rcx], 3
    assert_eq!(
        cpu.log,
        [
            Event::Read(DEVICE, Width::Dword),
            Event::Write(DEVICE, Width::Dword, 0x7f),
            Event::Read(DEVICE, Width::Dword),
            Event::Exchange(DEVICE, Width::Dword, 0x10, 0x10),
            Event::Read(DEVICE, Width::Dword),
            Event::Exchange(DEVICE, Width::Dword, 5, 0),
            Event::Read(DEVICE, Width::Dword),
        ]
    );
    // CMP and TEST do not write.
    cpu.log.clear();
    done(&mut cpu, &[0x83, 0x39, 0x70]);
    done(&mut cpu, &[0xf6, 0x01, 0x70]);
    assert_eq!(cpu.log, [Event::Read(DEVICE, Width::Dword), Event::Read(DEVICE, Width::Byte)]);
}

#[test]
fn a_locked_update_takes_the_newest_value() {
    let mut cpu = with_device();
    cpu.put(0x2000, &[1]).set(Gpr::Rax, 1).set(Gpr::Rcx, 0x2000);
    cpu.rival.extend([10, 20]);
    // lock xadd [rcx], eax
    done(&mut cpu, &[0xf0, 0x0f, 0xc1, 0x01]);
    assert_eq!((cpu.gprs[Gpr::Rax], cpu.value(0x2000, Width::Dword)), (20, 21));
    // lock cmpxchg [rcx], edx: 21 is expected, but 22 is there by then.
    cpu.set(Gpr::Rax, 21).set(Gpr::Rdx, 5);
    cpu.rival.push_back(22);
    let outcome = emulate(&mut cpu, &[0xf0, 0x0f, 0xb1, 0x11]);
    assert!(matches!(outcome, Outcome::Done { rflags, .. } if rflags & Rflags::ZF.bits() == 0));
    assert_eq!((cpu.gprs[Gpr::Rax], cpu.value(0x2000, Width::Dword)), (22, 22));
    // A rival that never rests: the guest tries again, the host goes on.
    cpu.rival.extend(100..400);
    let before = cpu.gprs;
    assert_eq!(emulate(&mut cpu, &[0xf0, 0x0f, 0xc1, 0x01]), Outcome::Partial);
    assert_eq!(cpu.gprs, before);
}

#[test]
fn wide_accesses_come_in_aligned_pieces() {
    let mut cpu = with_device();
    cpu.vectors.as_mut().unwrap()[0] = [0x1111_2222_3333_4444_5555_6666_7777_8888, 0];
    done(&mut cpu, &[0x0f, 0x11, 0x41, 0x04]); // movups [rcx+4], xmm0
    assert_eq!(
        cpu.log,
        [
            Event::Write(DEVICE + 4, Width::Dword, 0x7777_8888),
            Event::Write(DEVICE + 8, Width::Qword, 0x3333_4444_5555_6666),
            Event::Write(DEVICE + 16, Width::Dword, 0x1111_2222),
        ]
    );
    // Across the page boundary from RAM into the device.
    cpu.log.clear();
    cpu.map(DEVICE - 0x1000, 0x1000, Rights::ReadWrite).set(Gpr::Rcx, DEVICE - 1).set(Gpr::Rax, 0x4433_2211);
    done(&mut cpu, &[0x89, 0x01]);
    assert_eq!(cpu.log, [Event::Write(DEVICE, Width::Word, 0x3322), Event::Write(DEVICE + 2, Width::Byte, 0x44)]);
    assert_eq!(cpu.bytes(DEVICE - 1, 1), [0x11]);
}

#[test]
fn rep_movs_translates_once_a_page_and_stops_at_its_budget() {
    let mut cpu = with_device();
    cpu.set(Gpr::Rcx, 150);
    // rep movsd from RAM to the device.
    for i in 0..150u32 {
        cpu.put(0x2000 + 4 * u64::from(i), &i.to_le_bytes());
    }
    assert_eq!(emulate(&mut cpu, &[0xf3, 0xa5]), Outcome::Partial);
    assert_eq!(cpu.walks, 2);
    assert_eq!((cpu.gprs[Gpr::Rcx], cpu.gprs[Gpr::Rsi], cpu.gprs[Gpr::Rdi]), (50, 0x2000 + 400, DEVICE + 400));
    assert_eq!(done(&mut cpu, &[0xf3, 0xa5]), 0x1002);
    assert_eq!(cpu.gprs[Gpr::Rcx], 0);
    let expected: Vec<_> = (0..150).map(|i| Event::Write(DEVICE + 4 * i, Width::Dword, i)).collect();
    assert_eq!(cpu.log, expected);
    // A count of zero does nothing, and asks for nothing.
    cpu.walks = 0;
    cpu.set(Gpr::Rsi, 1 << 63);
    assert_eq!(done(&mut cpu, &[0xf3, 0xa5]), 0x1002);
    assert_eq!(cpu.walks, 0);
}

#[test]
fn a_rep_string_stopped_by_a_fault_has_done_whole_iterations() {
    let mut cpu = with_device();
    cpu.map(0x6000, 0x1000, Rights::ReadOnly);
    // rep movsb from the device to the end of what is writable.
    cpu.answers.extend(1..100);
    cpu.set(Gpr::Rsi, DEVICE).set(Gpr::Rdi, 0x5ffd).set(Gpr::Rcx, 10);
    assert_eq!(emulate(&mut cpu, &[0xf3, 0xa4]), Outcome::Fault(Exception::pf(0x6000, 3)));
    assert_eq!((cpu.gprs[Gpr::Rcx], cpu.gprs[Gpr::Rsi], cpu.gprs[Gpr::Rdi]), (7, DEVICE + 3, 0x6000));
    assert_eq!(cpu.bytes(0x5ffd, 3), [1, 2, 3]);
    // The device was not read for the byte that could not be stored.
    assert_eq!(cpu.log.len(), 3);
}

#[test]
fn a_single_step_stops_a_rep_string_after_each_iteration() {
    let mut cpu = with_device();
    cpu.rflags |= Rflags::TF.bits();
    cpu.set(Gpr::Rcx, 2);
    assert_eq!(done(&mut cpu, &[0xf3, 0xaa]), 0x1000);
    assert_eq!((cpu.gprs[Gpr::Rcx], cpu.log.len()), (1, 1));
    assert_eq!(done(&mut cpu, &[0xf3, 0xaa]), 0x1002);
}

#[test]
fn string_ports() {
    let mut cpu = with_device();
    cpu.put(0x2000, b"hello");
    cpu.set(Gpr::Rdx, 0x3f8).set(Gpr::Rcx, 5);
    assert_eq!(done(&mut cpu, &[0xf3, 0x6e]), 0x1002);
    let expected: Vec<_> = b"hello".iter().map(|b| Event::Out(0x3f8, Width::Byte, u32::from(*b))).collect();
    assert_eq!(cpu.log, expected);
    assert_eq!((cpu.gprs[Gpr::Rsi], cpu.gprs[Gpr::Rcx], cpu.walks), (0x2005, 0, 1));

    // insw, backwards, with 32-bit addresses that clear the upper halves.
    cpu.log.clear();
    cpu.answers.extend([0x1111, 0x2222]);
    cpu.rflags |= Rflags::DF.bits();
    cpu.set(Gpr::Rdi, 0xdead_0000_0000_3002).set(Gpr::Rcx, 0xbeef_0000_0002);
    assert_eq!(done(&mut cpu, &[0x67, 0xf3, 0x66, 0x6d]), 0x1004);
    assert_eq!(cpu.bytes(0x3000, 4), [0x22, 0x22, 0x11, 0x11]);
    assert_eq!((cpu.gprs[Gpr::Rdi], cpu.gprs[Gpr::Rcx]), (0x2ffe, 0));
    assert_eq!(cpu.log, [Event::In(0x3f8, Width::Word); 2]);

    // A destination that faults is noticed before the port is read. REX.W does not make it wider.
    cpu.log.clear();
    cpu.set(Gpr::Rdi, 0x9000);
    assert_eq!(emulate(&mut cpu, &[0x48, 0x6d]), Outcome::Fault(Exception::pf(0x9000, 2)));
    assert_eq!(cpu.log, []);

    // Not at CPL 3 with IOPL 0: the #GP comes before any #PF.
    cpu.cpl = 3;
    assert_eq!(emulate(&mut cpu, &[0x6d]), Outcome::Fault(Exception::GP));
}

#[test]
fn sixteen_bit_strings_keep_the_upper_halves_and_honour_overrides() {
    let mut cpu = TestCpu::real();
    cpu.map(0, 0x3_0000, Rights::ReadWrite);
    cpu.segment_mut(SegmentRegister::Es).base = 0x1_0000;
    cpu.segment_mut(SegmentRegister::Fs).base = 0x2_0000;
    cpu.put(0x2_ffff, &[0xaa]).put(0x2_0000, &[0xbb]);
    cpu.set(Gpr::Rsi, 0x7777_ffff).set(Gpr::Rdi, 0x8888_0010).set(Gpr::Rcx, 0x9999_0002);
    // rep movsb es:[di], fs:[si]; SI wraps at 64 KiB.
    assert_eq!(done(&mut cpu, &[0xf3, 0x64, 0xa4]), 0x1003);
    assert_eq!(cpu.bytes(0x1_0010, 2), [0xaa, 0xbb]);
    assert_eq!((cpu.gprs[Gpr::Rsi], cpu.gprs[Gpr::Rdi], cpu.gprs[Gpr::Rcx]), (0x7777_0001, 0x8888_0012, 0x9999_0000));
    // outsw with a limit: the second byte lies beyond.
    cpu.segment_mut(SegmentRegister::Ds).limit = 0xff;
    cpu.set(Gpr::Rsi, 0xff);
    assert_eq!(emulate(&mut cpu, &[0x6f]), Outcome::Fault(Exception::GP));
}

#[test]
fn strings_stop_at_limits_and_wrap_in_the_middle_of_a_page() {
    let mut cpu = TestCpu::protected32();
    cpu.map(0x2000, 0x1000, Rights::ReadWrite);
    cpu.segment_mut(SegmentRegister::Es).limit = 0x2104;
    cpu.set(Gpr::Rdi, 0x2100).set(Gpr::Rcx, 10).set(Gpr::Rax, 0x55);
    assert_eq!(emulate(&mut cpu, &[0xf3, 0xaa]), Outcome::Fault(Exception::GP));
    assert_eq!((cpu.gprs[Gpr::Rdi], cpu.gprs[Gpr::Rcx]), (0x2105, 5));
    assert_eq!(cpu.bytes(0x2100, 6), [0x55, 0x55, 0x55, 0x55, 0x55, 0]);

    let mut cpu = TestCpu::real();
    cpu.map(0x1_0000, 0x2_0000, Rights::ReadWrite);
    cpu.segment_mut(SegmentRegister::Es).base = 0x1_0800;
    cpu.set(Gpr::Rdi, 0xfffe).set(Gpr::Rcx, 4).set(Gpr::Rax, 0x55);
    done(&mut cpu, &[0xf3, 0xaa]);
    assert_eq!(cpu.bytes(0x2_07fd, 4), [0, 0x55, 0x55, 0]);
    assert_eq!(cpu.bytes(0x1_07ff, 4), [0, 0x55, 0x55, 0]);
    // 32-bit addresses in 64-bit mode, where no limit would notice: outsb gs:[esi].
    let mut cpu64 = TestCpu::long();
    cpu64.map(0, 0x1000, Rights::ReadWrite).map(1 << 32, 0x1000, Rights::ReadWrite);
    cpu64.segment_mut(SegmentRegister::Gs).base = 0x800;
    cpu64.put((1 << 32) + 0x7fe, &[1, 2, 0xff, 0xff]).put(0x800, &[3, 4]);
    cpu64.set(Gpr::Rsi, 0xffff_fffe).set(Gpr::Rcx, 4);
    done(&mut cpu64, &[0x67, 0x65, 0xf3, 0x6e]);
    assert_eq!(cpu64.log, [1, 2, 3, 4].map(|value| Event::Out(0, Width::Byte, value)));
    // And backwards.
    cpu.rflags |= Rflags::DF.bits();
    cpu.set(Gpr::Rdi, 1).set(Gpr::Rcx, 4).set(Gpr::Rax, 0x66);
    done(&mut cpu, &[0xf3, 0xaa]);
    assert_eq!(cpu.bytes(0x2_07fd, 4), [0, 0x66, 0x66, 0]);
    assert_eq!(cpu.bytes(0x1_07ff, 4), [0, 0x66, 0x66, 0]);
}

#[test]
fn instruction_bytes_are_fetched_as_far_as_needed() {
    let code = [0x48, 0xc7, 0x41, 0x08, 1, 0, 0, 0]; // mov qword [rcx+8], 1
    for start in [0x6ff8u64, 0x6ff7] {
        let mut cpu = with_device();
        cpu.map(0x6000, 0x1000, Rights::ReadOnly).put(start, &code);
        cpu.rip = start;
        assert_eq!(done(&mut cpu, &[]), start + 8);
        assert_eq!(cpu.log.len(), 1);
    }
    for known in 0..8 {
        // The instruction reaches into a page that is not there.
        let mut cpu = with_device();
        cpu.map(0x6000, 0x1000, Rights::ReadOnly).put(0x6ffc, &code[..4]);
        cpu.rip = 0x6ffc;
        let outcome = emulate(&mut cpu, &code[..known.min(4)]);
        assert_eq!(outcome, Outcome::Fault(Exception::pf(0x7000, 0x10)));
        // Once it is there, all is well.
        cpu.map(0x7000, 0x1000, Rights::ReadOnly).put(0x7000, &code[4..]);
        assert_eq!(done(&mut cpu, &code[..known]), 0x7004);
    }
    // Prefixes without end.
    let mut cpu = with_device();
    cpu.map(0x6000, 0x2000, Rights::ReadOnly).put(0x6ff8, &[0x66; 40]);
    cpu.rip = 0x6ff8;
    assert_eq!(emulate(&mut cpu, &[]), Outcome::Fault(Exception::GP));
    assert_eq!(emulate(&mut cpu, &[0x66; 15]), Outcome::Fault(Exception::GP));
    // A code segment's limit: #GP if the instruction needs the bytes beyond, nothing if not.
    let mut cpu = TestCpu::protected32();
    cpu.map(0x6000, 0x2000, Rights::ReadWrite).put(0x6100, &[0x8b, 0x0d, 0, 0x60, 0, 0]);
    cpu.rip = 0x6100;
    cpu.segment_mut(SegmentRegister::Cs).limit = 0x6105;
    assert_eq!(done(&mut cpu, &[]), 0x6106);
    cpu.segment_mut(SegmentRegister::Cs).limit = 0x6104;
    assert_eq!(emulate(&mut cpu, &[]), Outcome::Fault(Exception::GP));
}

#[test]
fn what_is_not_emulated_says_so_and_does_nothing() {
    let far_jump: &[u8] = &[0xff, 0x29];
    let fld: &[u8] = &[0xd9, 0x01];
    let addps: &[u8] = &[0x0f, 0x58, 0x01];
    for code in [far_jump, fld, addps, &[0x0f, 0x0b]] {
        let mut cpu = with_device();
        let before = cpu.gprs;
        match emulate(&mut cpu, code) {
            Outcome::Unsupported(bytes) => assert_eq!(bytes.as_slice(), code),
            other => panic!("{other:x?}"),
        }
        assert_eq!((cpu.gprs, cpu.log.len()), (before, 0));
    }
    let mut cpu = with_device();
    let outcome = emulate(&mut cpu, addps);
    assert_eq!(std::format!("{outcome:?}"), "Unsupported([0f 58 01])");
}

#[test]
fn an_abort_ends_the_instruction_where_it_stands() {
    let mut cpu = with_device();
    cpu.broken = 0x4000..0x5000;
    cpu.set(Gpr::Rcx, 0x4000);
    for code in [&[0x8b, 0x01][..], &[0x83, 0x01, 0x01], &[0x0f, 0x28, 0x01]] {
        assert_eq!(emulate(&mut cpu, code), Outcome::Abort);
    }
    // rep stosb into it: the bytes before it are written.
    cpu.set(Gpr::Rcx, 10).set(Gpr::Rdi, 0x3ffe).set(Gpr::Rax, 0x55);
    assert_eq!(emulate(&mut cpu, &[0xf3, 0xaa]), Outcome::Abort);
    assert_eq!((cpu.gprs[Gpr::Rcx], cpu.bytes(0x3ffe, 3)), (8, vec![0x55, 0x55, 0]));
}

#[test]
fn the_decoders_agree_on_every_plain_form() {
    // All opcodes of the short way, all ModRM bytes, a SIB byte of each kind, all prefixes: with flat and with odd segments.
    let opcodes: [&[u8]; 16] = [
        &[0x88],
        &[0x89],
        &[0x8a],
        &[0x8b],
        &[0xc6],
        &[0xc7],
        &[0xa0],
        &[0xa1],
        &[0xa2],
        &[0xa3],
        &[0x0f, 0xb6],
        &[0x0f, 0xb7],
        &[0x0f, 0xbe],
        &[0x0f, 0xbf],
        &[0x6e],
        &[0xa5],
    ];
    let prefixes: [&[u8]; 10] =
        [&[], &[0x66], &[0x67], &[0x66, 0x67], &[0x67, 0x66], &[0x66, 0x66], &[0x65], &[0xf3], &[0x2e, 0xf2, 0x67], &[0x3e]];
    let mut completed = 0;
    let mut random = common::Random(7);
    for make in [TestCpu::long as fn() -> TestCpu, TestCpu::protected32, TestCpu::protected16, TestCpu::real] {
        let long = make().efer != 0;
        for opcode in opcodes {
            for prefix in prefixes {
                for modrm in 0..=255u8 {
                    let mut code = prefix.to_vec();
                    if long && modrm % 3 != 0 {
                        code.push(0x40 | random.next() as u8 & 15);
                    }
                    code.extend_from_slice(opcode);
                    code.push(modrm);
                    let low = random.next() as u8;
                    code.extend_from_slice(&[low, 0x10, 0x20, 0, 0, 0, 0, 0, 1, 2, 3]);
                    code.truncate(15);
                    let mut cpu = make();
                    // Everything is device memory: addresses need not be aimed.
                    cpu.device = 0..u64::MAX;
                    for i in 0..16 {
                        cpu.gprs[Gpr::from_index(i)] = if long { random.next() >> 18 } else { random.next() >> 50 };
                    }
                    cpu.gprs[Gpr::Rcx] &= 0x3f;
                    if modrm % 5 == 1 {
                        cpu.segment_mut(SegmentRegister::Ss).base = 0x100;
                    }
                    if modrm % 5 == 0 {
                        cpu.segment_mut(SegmentRegister::Ds).limit = 0x2fff;
                        cpu.segment_mut(SegmentRegister::Ss).base = 0x100;
                        cpu.segment_mut(SegmentRegister::Gs).base = 0x200;
                    }
                    cpu.answers.extend([0x8182_8384_8586_8788]);
                    let mut by_hand = cpu.clone();
                    let mut in_full = cpu;
                    let outcome = emulate(&mut by_hand, &code);
                    assert_eq!(outcome, emulate_by_full_decoder(&mut in_full, &code), "{code:02x?}");
                    assert_eq!((by_hand.gprs, by_hand.log), (in_full.gprs, in_full.log), "{code:02x?}");
                    completed += u32::from(matches!(outcome, Outcome::Done { .. }));
                }
            }
        }
    }
    assert!(completed > 50_000, "only {completed} instructions did anything");
}

/// SMSW stores 16 bits, and ENTER and LEAVE work on a stack that is a device's.
#[test]
fn machine_status_and_frames() {
    let mut cpu = with_device();
    done(&mut cpu, &[0x0f, 0x01, 0x21]); // smsw [rcx]
    let status = cpu.cr0 & 0xffff;
    assert_eq!(cpu.log, [Event::Write(DEVICE, Width::Word, status)]);
    cpu.log.clear();

    cpu.set(Gpr::Rsp, DEVICE + 0x100).set(Gpr::Rbp, 0x1234);
    done(&mut cpu, &[0xc8, 0x30, 0x00, 0x00]); // enter 0x30, 0
    assert_eq!((cpu.gprs[Gpr::Rbp], cpu.gprs[Gpr::Rsp]), (DEVICE + 0xf8, DEVICE + 0xc8));
    assert_eq!(cpu.log, [Event::Write(DEVICE + 0xf8, Width::Qword, 0x1234)]);
    cpu.log.clear();

    cpu.answers.push_back(0x5678);
    done(&mut cpu, &[0xc9]); // leave
    assert_eq!((cpu.gprs[Gpr::Rbp], cpu.gprs[Gpr::Rsp]), (0x5678, DEVICE + 0x100));
    assert_eq!(cpu.log, [Event::Read(DEVICE + 0xf8, Width::Qword)]);
    cpu.log.clear();

    // Two levels deeper: the outer frames' pointers are copied, and the new one follows.
    cpu.set(Gpr::Rbp, DEVICE + 0x200);
    cpu.answers.extend([0xaaaa, 0xbbbb]);
    done(&mut cpu, &[0xc8, 0x10, 0x00, 0x03]); // enter 0x10, 3
    let frame = DEVICE + 0xf8;
    assert_eq!((cpu.gprs[Gpr::Rbp], cpu.gprs[Gpr::Rsp]), (frame, DEVICE + 0xf8 - 24 - 0x10));
    assert_eq!(
        cpu.log,
        [
            Event::Write(frame, Width::Qword, DEVICE + 0x200),
            Event::Read(DEVICE + 0x1f8, Width::Qword),
            Event::Write(frame - 8, Width::Qword, 0xaaaa),
            Event::Read(DEVICE + 0x1f0, Width::Qword),
            Event::Write(frame - 16, Width::Qword, 0xbbbb),
            Event::Write(frame - 24, Width::Qword, frame),
        ]
    );

    // A fault leaves the registers as they were.
    cpu.set(Gpr::Rsp, 0x9_0000).set(Gpr::Rbp, 0x9_0000);
    for bytes in [&[0xc9][..], &[0xc8, 0, 0, 0]] {
        assert!(matches!(emulate(&mut cpu, bytes), Outcome::Fault(Exception { vector: 14, .. })));
        assert_eq!((cpu.gprs[Gpr::Rbp], cpu.gprs[Gpr::Rsp]), (0x9_0000, 0x9_0000));
    }
}
