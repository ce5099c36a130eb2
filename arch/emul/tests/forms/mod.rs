//! The instruction forms that the differential test draws from: encodings, operand sizes, and the flags that the manual leaves
//! undefined.

pub const CF: u64 = 1;
pub const PF: u64 = 4;
pub const AF: u64 = 0x10;
pub const ZF: u64 = 0x40;
pub const SF: u64 = 0x80;
pub const OF: u64 = 0x800;
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// How the operand size is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    Byte,
    /// 16, 32 or 64 bits by prefixes.
    Any,
    /// As `Any`, but 64 bits where there is no prefix, and never 32.
    Stack,
    /// 32 bits, or 64 with REX.W.
    NoWord,
    /// Given by the opcode; prefixes are not touched. Bytes of the memory operand.
    Fixed(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Special {
    None,
    /// The register's value is a bit offset: keep it small.
    BitOffset,
    /// The flags depend on the count.
    Shift,
    DoubleShift,
    Stack,
    /// The memory operand holds a code address.
    Branch,
    Return,
    String,
    Xlat,
    MemoryOffset,
    Cmpxchg8b,
}

#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// 0, 0x66, 0xf2 or 0xf3.
    pub prefix: u8,
    /// With its escape bytes.
    pub opcode: &'static [u8],
    /// ModRM.reg, where the opcode fixes it.
    pub digit: Option<u8>,
    /// Bytes; 4 means 2 with a 66 prefix.
    pub immediate: usize,
    pub size: Size,
    pub undefined: u64,
    pub lock: bool,
    pub memory_only: bool,
    pub special: Special,
    /// VEX: map and width rules.
    pub vex: Option<Vex>,
}

#[derive(Clone, Copy, Debug)]
pub struct Vex {
    pub map: u8,
    pub pp: u8,
    /// 256 bits allowed.
    pub wide: bool,
    /// W is free (general registers).
    pub w: bool,
    /// A second source in vvvv.
    pub source: bool,
    /// W is always one.
    pub w1: bool,
}

const BASE: Form = Form {
    prefix: 0,
    opcode: &[],
    digit: None,
    immediate: 0,
    size: Size::Any,
    undefined: 0,
    lock: false,
    memory_only: false,
    special: Special::None,
    vex: None,
};

const ALU_OPCODES: [[u8; 1]; 64] = {
    let mut all = [[0]; 64];
    let mut i = 0;
    while i < 64 {
        all[i] = [i as u8];
        i += 1;
    }
    all
};

const CONDITIONS: [[[u8; 2]; 16]; 2] = {
    let mut all = [[[0x0f, 0]; 16]; 2];
    let mut i = 0;
    while i < 16 {
        all[0][i][1] = 0x40 + i as u8;
        all[1][i][1] = 0x90 + i as u8;
        i += 1;
    }
    all
};

fn has(feature: &str) -> bool {
    match feature {
        "avx" => std::is_x86_feature_detected!("avx"),
        "movbe" => std::is_x86_feature_detected!("movbe"),
        "bmi1" => std::is_x86_feature_detected!("bmi1"),
        "bmi2" => std::is_x86_feature_detected!("bmi2"),
        "lzcnt" => std::is_x86_feature_detected!("lzcnt"),
        "popcnt" => std::is_x86_feature_detected!("popcnt"),
        "cx16" => std::is_x86_feature_detected!("cmpxchg16b"),
        "sse4.1" => std::is_x86_feature_detected!("sse4.1"),
        _ => false,
    }
}

pub fn forms() -> Vec<Vec<Form>> {
    let mut groups = Vec::new();

    let mut alu = Vec::new();
    for op in 0..8u8 {
        let logic = matches!(op, 1 | 4 | 6);
        let undefined = if logic { AF } else { 0 };
        let lock = op != 7;
        for low in 0..4u8 {
            let size = if low & 1 == 0 { Size::Byte } else { Size::Any };
            let opcode = &ALU_OPCODES[usize::from(op << 3 | low)];
            alu.push(Form { opcode, size, undefined, lock: lock && low < 2, ..BASE });
        }
        let digit = Some(op);
        alu.push(Form { opcode: &[0x80], digit, immediate: 1, size: Size::Byte, undefined, lock, ..BASE });
        alu.push(Form { opcode: &[0x81], digit, immediate: 4, undefined, lock, ..BASE });
        alu.push(Form { opcode: &[0x83], digit, immediate: 1, undefined, lock, ..BASE });
    }
    alu.push(Form { opcode: &[0x84], size: Size::Byte, undefined: AF, ..BASE });
    alu.push(Form { opcode: &[0x85], undefined: AF, ..BASE });
    alu.push(Form { opcode: &[0xf6], digit: Some(0), immediate: 1, size: Size::Byte, undefined: AF, ..BASE });
    alu.push(Form { opcode: &[0xf7], digit: Some(0), immediate: 4, undefined: AF, ..BASE });
    for digit in [2, 3] {
        alu.push(Form { opcode: &[0xf6], digit: Some(digit), size: Size::Byte, lock: true, ..BASE });
        alu.push(Form { opcode: &[0xf7], digit: Some(digit), lock: true, ..BASE });
    }
    for digit in [0, 1] {
        alu.push(Form { opcode: &[0xfe], digit: Some(digit), size: Size::Byte, lock: true, ..BASE });
        alu.push(Form { opcode: &[0xff], digit: Some(digit), lock: true, ..BASE });
    }
    groups.push(alu);

    let mut multiply = Vec::new();
    for digit in 4..8 {
        let undefined = if digit < 6 { SF | ZF | AF | PF } else { STATUS };
        multiply.push(Form { opcode: &[0xf6], digit: Some(digit), size: Size::Byte, undefined, ..BASE });
        multiply.push(Form { opcode: &[0xf7], digit: Some(digit), undefined, ..BASE });
    }
    let undefined = SF | ZF | AF | PF;
    multiply.push(Form { opcode: &[0x0f, 0xaf], undefined, ..BASE });
    multiply.push(Form { opcode: &[0x69], immediate: 4, undefined, ..BASE });
    multiply.push(Form { opcode: &[0x6b], immediate: 1, undefined, ..BASE });
    groups.push(multiply);

    let mut mov = vec![
        Form { opcode: &[0x88], size: Size::Byte, ..BASE },
        Form { opcode: &[0x89], ..BASE },
        Form { opcode: &[0x8a], size: Size::Byte, ..BASE },
        Form { opcode: &[0x8b], ..BASE },
        Form { opcode: &[0xc6], digit: Some(0), immediate: 1, size: Size::Byte, ..BASE },
        Form { opcode: &[0xc7], digit: Some(0), immediate: 4, ..BASE },
        Form { opcode: &[0xa0], size: Size::Byte, special: Special::MemoryOffset, ..BASE },
        Form { opcode: &[0xa1], special: Special::MemoryOffset, ..BASE },
        Form { opcode: &[0xa2], size: Size::Byte, special: Special::MemoryOffset, ..BASE },
        Form { opcode: &[0xa3], special: Special::MemoryOffset, ..BASE },
        Form { opcode: &[0x0f, 0xb6], ..BASE },
        Form { opcode: &[0x0f, 0xb7], ..BASE },
        Form { opcode: &[0x0f, 0xbe], ..BASE },
        Form { opcode: &[0x0f, 0xbf], ..BASE },
        // With a 66 prefix, Intel's CPUs read two bytes and AMD's four.
        Form { opcode: &[0x63], size: Size::NoWord, ..BASE },
        Form { opcode: &[0x0f, 0xc3], size: Size::NoWord, memory_only: true, ..BASE },
        Form { opcode: &[0xd7], size: Size::Fixed(1), special: Special::Xlat, ..BASE },
    ];
    for register in [0, 1, 2, 3] {
        mov.push(Form { opcode: &[0x8c], digit: Some(register), ..BASE });
    }
    if has("movbe") {
        mov.push(Form { opcode: &[0x0f, 0x38, 0xf0], memory_only: true, ..BASE });
        mov.push(Form { opcode: &[0x0f, 0x38, 0xf1], memory_only: true, ..BASE });
    }
    groups.push(mov);

    let mut exchange = vec![
        Form { opcode: &[0x86], size: Size::Byte, lock: true, ..BASE },
        Form { opcode: &[0x87], lock: true, ..BASE },
        Form { opcode: &[0x0f, 0xc0], size: Size::Byte, lock: true, ..BASE },
        Form { opcode: &[0x0f, 0xc1], lock: true, ..BASE },
        Form { opcode: &[0x0f, 0xb0], size: Size::Byte, lock: true, ..BASE },
        // Between registers, vendors differ in what becomes of the upper half of a 32-bit target that does not match.
        Form { opcode: &[0x0f, 0xb1], lock: true, memory_only: true, ..BASE },
    ];
    let pair = Form { opcode: &[0x0f, 0xc7], digit: Some(1), lock: true, memory_only: true, special: Special::Cmpxchg8b, ..BASE };
    exchange.push(Form { size: if has("cx16") { Size::NoWord } else { Size::Fixed(8) }, ..pair });
    groups.push(exchange);

    let mut bits = Vec::new();
    let undefined = OF | SF | AF | PF;
    let opcodes: [&[u8]; 4] = [&[0x0f, 0xa3], &[0x0f, 0xab], &[0x0f, 0xb3], &[0x0f, 0xbb]];
    for (i, opcode) in opcodes.into_iter().enumerate() {
        bits.push(Form { opcode, undefined, lock: i > 0, special: Special::BitOffset, ..BASE });
        let digit = Some(4 + i as u8);
        bits.push(Form { opcode: &[0x0f, 0xba], digit, immediate: 1, undefined, lock: i > 0, ..BASE });
    }
    let undefined = CF | OF | SF | AF | PF;
    bits.push(Form { opcode: &[0x0f, 0xbc], undefined, ..BASE });
    bits.push(Form { opcode: &[0x0f, 0xbd], undefined, ..BASE });
    if has("bmi1") {
        bits.push(Form { prefix: 0xf3, opcode: &[0x0f, 0xbc], undefined: OF | SF | AF | PF, ..BASE });
        let vex = Some(Vex { map: 2, pp: 0, wide: false, w: true, source: true, w1: false });
        bits.push(Form { opcode: &[0xf2], size: Size::NoWord, undefined: AF | PF, vex, ..BASE });
    }
    if has("lzcnt") {
        bits.push(Form { prefix: 0xf3, opcode: &[0x0f, 0xbd], undefined: OF | SF | AF | PF, ..BASE });
    }
    if has("popcnt") {
        bits.push(Form { prefix: 0xf3, opcode: &[0x0f, 0xb8], ..BASE });
    }
    if has("bmi2") {
        for pp in 1..4 {
            let vex = Some(Vex { map: 2, pp, wide: false, w: true, source: true, w1: false });
            bits.push(Form { opcode: &[0xf7], size: Size::NoWord, vex, ..BASE });
        }
        let vex = Some(Vex { map: 3, pp: 3, wide: false, w: true, source: false, w1: false });
        bits.push(Form { opcode: &[0xf0], size: Size::NoWord, immediate: 1, vex, ..BASE });
    }
    groups.push(bits);

    let mut shifts = Vec::new();
    for digit in 0..8 {
        let form = Form { digit: Some(digit), special: Special::Shift, ..BASE };
        shifts.push(Form { opcode: &[0xc0], immediate: 1, size: Size::Byte, ..form });
        shifts.push(Form { opcode: &[0xc1], immediate: 1, ..form });
        shifts.push(Form { opcode: &[0xd0], size: Size::Byte, ..form });
        shifts.push(Form { opcode: &[0xd1], ..form });
        shifts.push(Form { opcode: &[0xd2], size: Size::Byte, ..form });
        shifts.push(Form { opcode: &[0xd3], ..form });
    }
    let form = Form { special: Special::DoubleShift, ..BASE };
    shifts.push(Form { opcode: &[0x0f, 0xa4], immediate: 1, ..form });
    shifts.push(Form { opcode: &[0x0f, 0xa5], ..form });
    shifts.push(Form { opcode: &[0x0f, 0xac], immediate: 1, ..form });
    shifts.push(Form { opcode: &[0x0f, 0xad], ..form });
    groups.push(shifts);

    let mut conditions = Vec::new();
    let [moves, sets] = &CONDITIONS;
    conditions.extend(moves.iter().map(|opcode| Form { opcode, ..BASE }));
    conditions.extend(sets.iter().map(|opcode| Form { opcode, size: Size::Byte, digit: Some(0), ..BASE }));
    groups.push(conditions);

    groups.push(vec![
        Form { opcode: &[0xff], digit: Some(6), size: Size::Stack, special: Special::Stack, ..BASE },
        Form { opcode: &[0x8f], digit: Some(0), size: Size::Stack, special: Special::Stack, ..BASE },
        Form { opcode: &[0x68], immediate: 4, size: Size::Stack, special: Special::Return, ..BASE },
        Form { opcode: &[0x6a], immediate: 1, size: Size::Stack, special: Special::Return, ..BASE },
        Form { opcode: &[0xff], digit: Some(2), size: Size::Fixed(8), memory_only: true, special: Special::Branch, ..BASE },
        Form { opcode: &[0xff], digit: Some(4), size: Size::Fixed(8), memory_only: true, special: Special::Branch, ..BASE },
        Form { opcode: &[0xc3], size: Size::Fixed(8), special: Special::Return, ..BASE },
        Form { opcode: &[0xc2], immediate: 2, size: Size::Fixed(8), special: Special::Return, ..BASE },
    ]);

    let mut strings = Vec::new();
    for opcode in [0xa4u8, 0xa6, 0xaa, 0xac, 0xae] {
        for low in 0..2 {
            // The opcodes from 0x40 on are not in the ALU table.
            static STRINGS: [[u8; 1]; 16] = {
                let mut all = [[0]; 16];
                let mut i = 0;
                while i < 16 {
                    all[i] = [0xa0 + i as u8];
                    i += 1;
                }
                all
            };
            let size = if low == 0 { Size::Byte } else { Size::Any };
            let opcode = &STRINGS[usize::from(opcode & 0xf | low)];
            strings.push(Form { opcode, size, special: Special::String, ..BASE });
        }
    }
    groups.push(strings);

    // (prefix, opcode, bytes, VEX.L allowed, second source of the VEX load)
    type Move = (u8, &'static [u8], u64, bool, bool);
    const MOVES: [Move; 27] = [
        (0, &[0x0f, 0x28], 16, true, false),
        (0x66, &[0x0f, 0x28], 16, true, false),
        (0, &[0x0f, 0x29], 16, true, false),
        (0x66, &[0x0f, 0x29], 16, true, false),
        (0, &[0x0f, 0x10], 16, true, false),
        (0x66, &[0x0f, 0x10], 16, true, false),
        (0, &[0x0f, 0x11], 16, true, false),
        (0x66, &[0x0f, 0x11], 16, true, false),
        (0x66, &[0x0f, 0x6f], 16, true, false),
        (0x66, &[0x0f, 0x7f], 16, true, false),
        (0xf3, &[0x0f, 0x6f], 16, true, false),
        (0xf3, &[0x0f, 0x7f], 16, true, false),
        (0x66, &[0x0f, 0xe7], 16, true, false),
        (0, &[0x0f, 0x2b], 16, true, false),
        (0x66, &[0x0f, 0x2b], 16, true, false),
        (0xf2, &[0x0f, 0xf0], 16, true, false),
        (0xf3, &[0x0f, 0x10], 4, false, false),
        (0xf3, &[0x0f, 0x11], 4, false, false),
        (0xf2, &[0x0f, 0x10], 8, false, false),
        (0xf2, &[0x0f, 0x11], 8, false, false),
        (0, &[0x0f, 0x12], 8, false, true),
        (0, &[0x0f, 0x13], 8, false, false),
        (0, &[0x0f, 0x16], 8, false, true),
        (0x66, &[0x0f, 0x17], 8, false, false),
        (0x66, &[0x0f, 0x16], 8, false, true),
        (0xf3, &[0x0f, 0x7e], 8, false, false),
        (0x66, &[0x0f, 0xd6], 8, false, false),
    ];
    let mut vectors = Vec::new();
    for (prefix, opcode, bytes, wide, source) in MOVES {
        let form = Form { prefix, opcode, size: Size::Fixed(bytes), memory_only: true, ..BASE };
        vectors.push(form);
        if has("avx") {
            let pp = match prefix {
                0x66 => 1,
                0xf3 => 2,
                0xf2 => 3,
                _ => 0,
            };
            let vex = Some(Vex { map: 1, pp, wide, w: false, source, w1: false });
            vectors.push(Form { prefix: 0, opcode: &opcode[1..], vex, ..form });
        }
    }
    for opcode in [&[0x0f, 0x6e], &[0x0f, 0x7e]] {
        vectors.push(Form { prefix: 0x66, opcode, size: Size::NoWord, memory_only: true, ..BASE });
        if has("avx") {
            let vex = Some(Vex { map: 1, pp: 1, wide: false, w: false, source: false, w1: false });
            vectors.push(Form { opcode: &opcode[1..], size: Size::Fixed(4), memory_only: true, vex, ..BASE });
            let vex = Some(Vex { map: 1, pp: 1, wide: false, w: false, source: false, w1: true });
            vectors.push(Form { opcode: &opcode[1..], size: Size::Fixed(8), memory_only: true, vex, ..BASE });
        }
    }
    if has("sse4.1") {
        vectors.push(Form { prefix: 0x66, opcode: &[0x0f, 0x38, 0x2a], size: Size::Fixed(16), memory_only: true, ..BASE });
    }
    groups.push(vectors);
    groups
}
