//! The emulator against the processor that runs the test.
//!
//! Random instruction forms with random operands run twice: natively, in a trampoline that loads all registers, executes the
//! one instruction and stores all registers; and by the emulator, on a copy of the same memory. Registers, memory, RIP, defined
//! flags and, where the instruction faults, the exception must agree. The memory is four pages: two to write, a read-only one,
//! and one that is not there.
//!
//! `EMUL_CASES` sets the number of cases, `EMUL_SEED` the first seed. A failure prints the seed of its case.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(unsafe_code, reason = "runs generated machine code, which no safe interface offers")]

mod common;
mod forms;
mod native;

use common::{Random, Rights, TestCpu};
use emul::{Outcome, emulate, emulate_by_full_decoder};
use forms::{AF, CF, Form, OF, STATUS, Size, Special, forms};
use native::{CODE, Host, SCRATCH};
use x86defs::{Gpr, Rflags, SegmentRegister};

const GS_BASE: u64 = SCRATCH - 0x1234_5000;

/// One instruction with the state that it starts in.
struct Case {
    bytes: Vec<u8>,
    gprs: [u64; 16],
    rflags: u64,
    vectors: [[u128; 2]; 16],
    memory: Vec<u8>,
    undefined: u64,
}

/// An address for `len` bytes: mostly in the writable pages, sometimes across a boundary, in the read-only page or outside.
fn target(random: &mut Random, len: u64) -> u64 {
    match random.below(16) {
        0..=8 => SCRATCH + random.below(0x1c00),
        9..=11 => SCRATCH + 0x1000 - random.below(len + 2),
        12 => SCRATCH + 0x2000 - random.below(len + 2),
        13 => SCRATCH + 0x2000 + random.below(0xf00),
        14 => SCRATCH + 0x3000 - random.below(len + 2),
        _ => SCRATCH + 0x3000 + random.below(0x100),
    }
}

struct Address {
    modrm: u8,
    sib: Option<u8>,
    displacement: Vec<u8>,
    rex: u8,
    /// The displacement counts from the next instruction.
    relative: bool,
}

/// Random addressing of `at`, by setting the registers it uses. `avoid`: a register whose value must stay.
fn address(random: &mut Random, gprs: &mut [u64; 16], at: u64, narrow: bool, avoid: u8) -> Address {
    loop {
        let base = random.below(16) as u8;
        let index = random.below(16) as u8;
        let scale = random.below(4) as u8;
        let (size, displacement) = match random.below(3) {
            0 => (0u8, 0u64),
            1 => (1, random.next() as i8 as u64),
            _ => (4, random.next() as i32 as u64),
        };
        let mode = match size {
            0 => 0,
            1 => 1,
            _ => 2,
        };
        let mut bytes = displacement.to_le_bytes()[..usize::from(size)].to_vec();
        // In 32-bit addressing, the registers' upper halves must not matter.
        let junk = if narrow { random.next() << 32 } else { 0 };
        match random.below(8) {
            // RIP-relative: filled in later.
            0 => return Address { modrm: 5, sib: None, displacement: vec![0; 4], rex: 0, relative: true },
            // Absolute, with a SIB byte.
            1 => {
                let displacement = (at as u32).to_le_bytes().to_vec();
                return Address { modrm: 4, sib: Some(0x25), displacement, rex: 0, relative: false };
            }
            // Index only.
            2 if index != 4 && index != avoid => {
                let rest = random.next() as u32 & !((1 << scale) - 1);
                let displacement = at.wrapping_sub(u64::from(rest >> 1)) as i32;
                let value = at.wrapping_sub(displacement as u64) & if narrow { 0xffff_ffff } else { u64::MAX };
                if value & ((1 << scale) - 1) != 0 {
                    continue;
                }
                gprs[usize::from(index)] = value >> scale | if scale == 0 { junk } else { 0 };
                return Address {
                    modrm: 4,
                    sib: Some(scale << 6 | (index & 7) << 3 | 5),
                    displacement: displacement.to_le_bytes().to_vec(),
                    rex: index >> 3 << 1,
                    relative: false,
                };
            }
            // Base and index.
            3..=4 if index != 4 && base != index && base != avoid => {
                if base & 7 == 5 && mode == 0 {
                    continue;
                }
                let part = (gprs[usize::from(index)] << scale).wrapping_add(displacement);
                gprs[usize::from(base)] = at.wrapping_sub(part) & if narrow { 0xffff_ffff } else { u64::MAX } | junk;
                return Address {
                    modrm: mode << 6 | 4,
                    sib: Some(scale << 6 | (index & 7) << 3 | base & 7),
                    displacement: core::mem::take(&mut bytes),
                    rex: base >> 3 | index >> 3 << 1,
                    relative: false,
                };
            }
            // Base alone.
            _ if base != avoid && !(base & 7 == 5 && mode == 0) => {
                gprs[usize::from(base)] = at.wrapping_sub(displacement) & if narrow { 0xffff_ffff } else { u64::MAX } | junk;
                let sib = (base & 7 == 4).then_some(0x24);
                return Address { modrm: mode << 6 | base & 7, sib, displacement: bytes, rex: base >> 3, relative: false };
            }
            _ => {}
        }
    }
}

fn case(random: &mut Random, pool: &[u8], form: &Form, after: u64) -> Case {
    let mut gprs = core::array::from_fn(|_| random.value());
    // A random cut of random bytes: quicker than new ones.
    let cut = random.below((pool.len() - 0x3000) as u64) as usize;
    let mut memory = pool[cut..cut + 0x3000].to_vec();
    let mut rflags = 0x202 | random.next() & STATUS;
    if random.one_in(12) {
        rflags |= Rflags::AC.bits();
    }
    let vectors = core::array::from_fn(|_| core::array::from_fn(|_| u128::from(random.next()) << 64 | u128::from(random.next())));
    let mut undefined = form.undefined;

    // Operand size.
    let (word, wide, bytes) = match form.size {
        Size::Byte => (random.one_in(10), random.one_in(10), 1),
        Size::Any => match random.below(4) {
            0 => (true, false, 2),
            1 | 2 => (false, true, 8),
            _ => (false, false, 4),
        },
        Size::Stack => {
            let word = random.one_in(3);
            (word, !word && random.one_in(4), if word { 2 } else { 8 })
        }
        Size::NoWord => {
            let wide = random.one_in(2);
            (false, wide, if wide { 8 } else { 4 })
        }
        Size::Fixed(bytes) => (false, false, bytes),
    };
    let string = form.special == Special::String;
    let narrow = random.one_in(6) && !matches!(form.special, Special::Branch | Special::Return);
    let stackish = matches!(form.special, Special::Stack | Special::Branch | Special::Return);

    let mut prefixes = Vec::new();
    if narrow {
        prefixes.push(0x67);
    }
    let gs = !stackish && random.one_in(12);
    if gs {
        prefixes.push(0x65);
    } else if random.one_in(16) {
        prefixes.push(*random.pick(&[0x26, 0x2e, 0x36, 0x3e]));
    }
    if word && form.vex.is_none() {
        prefixes.push(0x66);
    }
    if form.prefix != 0 {
        prefixes.push(form.prefix);
    }

    let mut number = form.digit.unwrap_or(random.below(16) as u8);
    if number == 4 && form.special == Special::BitOffset {
        number = 3;
    }
    let mut rex = if wide { 8 } else { 0 } | number >> 3 << 2;
    let mut need_rex = rex != 0 || random.one_in(5);
    let wide_vector = form.vex.is_some_and(|vex| vex.wide) && random.one_in(2);
    let operand = match (form.special, form.size, form.opcode) {
        (Special::Cmpxchg8b, ..) => 2 * bytes.max(4),
        (_, Size::Any, [0x0f, 0xb6 | 0xbe]) => 1,
        (_, Size::Any, [0x0f, 0xb7 | 0xbf] | [0x8c]) => 2,
        (_, _, [0x63]) => 4,
        _ if wide_vector => 32,
        _ => bytes,
    };

    if string {
        if random.one_in(2) {
            rflags |= Rflags::DF.bits();
        }
        let high = if narrow { random.next() << 32 } else { 0 };
        let close = if random.one_in(2) { 300 } else { 0 };
        // At most one of the two operands may fault: which fault of CMPS comes first depends on the model.
        let risky = random.below(8);
        let at = |random: &mut Random, risk: bool| {
            if risk { target(random, bytes) } else { (SCRATCH + 0x1000 - close + random.below(600)) & !7 }
        };
        let offset = if gs { GS_BASE } else { 0 };
        gprs[Gpr::Rsi as usize] =
            at(random, risky == 0).wrapping_sub(offset) & if narrow { 0xffff_ffff } else { u64::MAX } | high;
        gprs[Gpr::Rdi as usize] = at(random, risky == 1) | high;
        let repeated = match random.below(3) {
            0 => 0,
            1 => 0xf3,
            _ => 0xf2,
        };
        if repeated != 0 {
            prefixes.push(repeated);
            gprs[Gpr::Rcx as usize] = (1 + random.below(60)) | high;
        }
        // Long runs of equal elements, for REPE and REPNE to get somewhere.
        if random.one_in(2) {
            let fill = random.next() as u8;
            memory.fill(fill);
            for _ in 0..40 {
                let at = random.below(0x3000) as usize;
                memory[at] = random.next() as u8;
            }
            gprs[Gpr::Rax as usize] = u64::from_le_bytes([fill; 8]);
        }
    }
    if operand >= 16 && form.special == Special::None {
        // Whether unaligned vector moves raise #AC depends on the model.
        rflags &= !Rflags::AC.bits();
    }
    let mut tail = Vec::new();
    let mut code = Vec::new();
    let mut relative = None;
    let mut vex_rex = 0;
    let at = target(random, operand)
        & if form.special == Special::None && operand >= 16 && random.one_in(2) { !(operand - 1) } else { !0 };
    let at = if form.special == Special::Cmpxchg8b && random.one_in(2) { at & !(operand - 1) } else { at };
    // No split locks: some hosts punish them.
    let split = form.lock && (at % 64 + operand > 64 || form.special == Special::BitOffset);
    let at = if split { at & !(operand - 1) } else { at };
    let effective = if gs { at.wrapping_sub(GS_BASE) } else { at };
    let mut registers_only = false;
    if stackish {
        gprs[Gpr::Rsp as usize] = SCRATCH + 0x200 + random.below(0x1800);
    }
    match form.special {
        Special::String => {}
        Special::Xlat => {
            gprs[Gpr::Rbx as usize] = effective.wrapping_sub(gprs[Gpr::Rax as usize] & 0xff);
        }
        Special::MemoryOffset => {
            let size = if narrow { 4 } else { 8 };
            tail.extend_from_slice(&effective.to_le_bytes()[..size]);
        }
        Special::Return => {
            let rsp = (gprs[Gpr::Rsp as usize] - SCRATCH) as usize;
            memory[rsp..rsp + 8].copy_from_slice(&after.to_le_bytes());
        }
        _ => {
            if !form.memory_only && random.one_in(4) {
                registers_only = true;
                let mut rm = random.below(16) as u8;
                if form.special == Special::Stack && rm == 4 && random.one_in(2) {
                    rm = 5;
                }
                rex |= rm >> 3;
                tail.push(0xc0 | (number & 7) << 3 | rm & 7);
            } else {
                let avoid = match form.special {
                    Special::BitOffset => number,
                    Special::Stack | Special::Branch => 4,
                    _ => 0xff,
                };
                let mut new = address(random, &mut gprs, effective, narrow, avoid);
                if form.special == Special::BitOffset {
                    // Not through the index either: its value is chosen below.
                    while new.sib.is_some_and(|sib| sib >> 3 & 7 | (new.rex & 2) << 2 == number) {
                        new = address(random, &mut gprs, effective, narrow, avoid);
                    }
                }
                tail.push(new.modrm | (number & 7) << 3);
                tail.extend(new.sib);
                if new.relative {
                    relative = Some(tail.len());
                }
                tail.extend(new.displacement);
                rex |= new.rex;
                if form.lock && random.one_in(3) {
                    prefixes.push(0xf0);
                }
                if form.special == Special::Branch && at + 8 <= SCRATCH + 0x3000 {
                    let at = (at - SCRATCH) as usize;
                    memory[at..at + 8].copy_from_slice(&after.to_le_bytes());
                }
            }
            vex_rex = rex;
        }
    }
    if form.special == Special::BitOffset && !registers_only {
        let small = random.below(16000) as i64 - 8000;
        let register = &mut gprs[usize::from(number)];
        *register = match bytes {
            2 => *register & !0xffff | small as u64 & 0xffff,
            4 => *register & !0xffff_ffff | small as u64 & 0xffff_ffff,
            _ => small as u64,
        };
    }
    if matches!(form.special, Special::Cmpxchg8b) || matches!(form.opcode, [0x0f, 0xb0 | 0xb1]) {
        // Make the comparison succeed half of the time.
        let start = at.wrapping_sub(SCRATCH) as usize;
        if random.one_in(2) && start + 16 <= memory.len() {
            let half = if form.special == Special::Cmpxchg8b { bytes as usize } else { 8 };
            let mut low = [0; 8];
            low[..half].copy_from_slice(&memory[start..start + half]);
            let mut high = [0; 8];
            high[..half].copy_from_slice(&memory[start + half..start + 2 * half]);
            let used = [Gpr::Rax as usize, Gpr::Rdx as usize];
            let before = gprs;
            gprs[used[0]] = u64::from_le_bytes(low);
            if form.special == Special::Cmpxchg8b {
                gprs[used[1]] = u64::from_le_bytes(high);
            }
            // Not if the address hangs on them.
            let by = |n: usize| tail.iter().take(2).any(|b| usize::from(b & 7) == n || usize::from(b >> 3 & 7) == n);
            if !registers_only && (by(0) || by(2)) {
                gprs = before;
            }
        }
    }
    let immediate = match form.immediate {
        4 if word => 2,
        n => n,
    };
    let value = random.value();
    if form.opcode == [0xc2] {
        tail.extend_from_slice(&(random.below(0x100) as u16).to_le_bytes());
    } else {
        tail.extend_from_slice(&value.to_le_bytes()[..immediate]);
    }

    code.extend_from_slice(&prefixes);
    if let Some(vex) = form.vex {
        // VEX allows no 66, F2, F3, LOCK or REX before it.
        let w = u8::from(vex.w && wide || vex.w1);
        let source = if vex.source { random.below(16) as u8 } else { 0 };
        code.push(0xc4);
        code.push((!(vex_rex & 7) & 7) << 5 | vex.map);
        code.push(w << 7 | (!source & 15) << 3 | u8::from(wide_vector) << 2 | vex.pp);
    } else {
        need_rex |= rex != 0;
        if need_rex {
            code.push(0x40 | rex);
        }
    }
    code.extend_from_slice(form.opcode);
    let tail_at = code.len();
    code.extend_from_slice(&tail);
    if let Some(place) = relative {
        let next = CODE + code.len() as u64;
        let displacement = (effective.wrapping_sub(next) as u32).to_le_bytes();
        code[tail_at + place..tail_at + place + 4].copy_from_slice(&displacement);
    }

    if matches!(form.special, Special::Shift | Special::DoubleShift) {
        let count = match form.opcode {
            [0xd0 | 0xd1] => 1,
            [0xd2 | 0xd3] | [0x0f, 0xa5 | 0xad] => gprs[Gpr::Rcx as usize] as u8,
            _ => value as u8,
        };
        let bits = 8 * bytes;
        let count = u64::from(count) & if bits == 64 { 63 } else { 31 };
        let rotate = form.special == Special::Shift && form.digit.is_some_and(|digit| digit < 4);
        if count != 0 {
            undefined |= if rotate { 0 } else { AF };
            undefined |= if count == 1 { 0 } else { OF };
            if !rotate && count >= bits && form.digit != Some(7) {
                undefined |= CF;
            }
            if form.special == Special::DoubleShift && count > bits {
                undefined = STATUS;
            }
        }
    }
    Case { bytes: code, gprs, rflags, vectors, memory, undefined }
}

/// SHLD and SHRD of 16 bits by more than 16 have an undefined result.
fn undefined_result(case: &Case, form: &Form) -> bool {
    form.special == Special::DoubleShift && case.undefined == STATUS
}

fn emulated(case: &Case) -> TestCpu {
    let mut cpu = TestCpu::long();
    cpu.cpl = 3;
    cpu.rip = CODE;
    cpu.rflags = case.rflags;
    cpu.vectors = Some(case.vectors);
    for (i, value) in case.gprs.iter().enumerate() {
        cpu.gprs[Gpr::from_index(i as u8)] = *value;
    }
    cpu.segment_mut(SegmentRegister::Gs).base = GS_BASE;
    cpu.map(SCRATCH, 0x2000, Rights::ReadWrite).map(SCRATCH + 0x2000, 0x1000, Rights::ReadOnly);
    cpu.put(SCRATCH, &case.memory);
    for (register, selector) in native::selectors() {
        cpu.segment_mut(register).selector = selector;
    }
    cpu
}

/// Runs the case in all ways and says how they differ.
fn check(host: &mut Host, case: &Case, form: &Form) -> Result<bool, String> {
    let mut fast = emulated(case);
    let fast_outcome = emulate(&mut fast, &case.bytes);
    let mut full = emulated(case);
    let full_outcome = emulate_by_full_decoder(&mut full, &case.bytes);
    if fast_outcome != full_outcome || fast.gprs != full.gprs || fast.pages != full.pages || fast.vectors != full.vectors {
        return Err(format!("the decoders disagree: {fast_outcome:x?} by hand, {full_outcome:x?} in full"));
    }

    let native = host.run(&case.bytes, &case.gprs, case.rflags, &case.vectors, &case.memory);
    let mut differences = Vec::new();
    let mut faulted = false;
    match (fast_outcome, native.fault) {
        (Outcome::Done { rip, rflags }, None) => {
            if rip != native.rip.unwrap_or(CODE + case.bytes.len() as u64) {
                differences.push(format!("rip {rip:#x}, native {:x?}", native.rip));
            }
            let mask = (STATUS | Rflags::DF.bits()) & !case.undefined;
            if rflags & mask != native.rflags & mask {
                differences.push(format!("rflags {:#x}, native {:#x}", rflags & mask, native.rflags & mask));
            }
        }
        (Outcome::Fault(exception), Some(fault)) => {
            faulted = true;
            let same = exception.vector == fault.vector
                && (exception.vector != 14 || exception.cr2 == Some(fault.cr2) && exception.error_code == Some(fault.error));
            if !same {
                differences.push(format!("{exception:x?}, native {fault:x?}"));
            }
        }
        (outcome, fault) => differences.push(format!("{outcome:x?}, native fault {fault:x?}")),
    }
    if !undefined_result(case, form) {
        for i in 0..16 {
            let value = fast.gprs[Gpr::from_index(i)];
            if value != native.gprs[usize::from(i)] {
                differences.push(format!("{:?} {value:#x}, native {:#x}", Gpr::from_index(i), native.gprs[usize::from(i)]));
            }
        }
        if fast.bytes(SCRATCH, case.memory.len()) != native.memory {
            let ours = fast.bytes(SCRATCH, case.memory.len());
            let at = ours.iter().zip(&native.memory).position(|(a, b)| a != b).unwrap_or(0);
            let end = (at + 32).min(ours.len());
            differences.push(format!("memory at {at:#x}: {:02x?}, native {:02x?}", &ours[at..end], &native.memory[at..end]));
        }
    }
    let vectors = fast.vectors.unwrap_or_default();
    for (i, (ours, theirs)) in vectors.iter().zip(&native.vectors).enumerate() {
        if host.avx && ours != theirs || ours[0] != theirs[0] {
            differences.push(format!("ymm{i} {ours:x?}, native {theirs:x?}"));
        }
    }
    if differences.is_empty() { Ok(faulted) } else { Err(differences.join("; ")) }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn agrees_with_this_processor() {
    let cases = setting("EMUL_CASES", 120_000);
    let seed = setting("EMUL_SEED", 1);
    let groups = forms();
    let mut random = Random(0);
    let pool: Vec<u8> = (0..0x2000).flat_map(|_| random.next().to_le_bytes()).collect();
    let mut host = Host::new(GS_BASE);
    let mut failures = Vec::new();
    let mut faults = 0;
    for n in 0..cases {
        let mut random = Random(seed.wrapping_add(n).wrapping_mul(0x1_0000_0001));
        let group = &groups[(n % groups.len() as u64) as usize];
        let form = *random.pick(group);
        let case = case(&mut random, &pool, &form, host.after());
        match check(&mut host, &case, &form) {
            Ok(faulted) => faults += u64::from(faulted),
            Err(difference) => {
                failures.push(format!("seed {}: {:02x?} ({form:x?}): {difference}", seed.wrapping_add(n), case.bytes));
                if failures.len() >= 20 {
                    break;
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // Both sides of the house must have been visited.
    assert!(faults > cases / 50 && faults < cases / 2, "{faults} of {cases} cases faulted");
}
