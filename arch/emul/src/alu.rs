//! Integer arithmetic and its flags as pure functions (SDM vol. 1, 7.3; vol. 2, the instruction pages; vol. 1, appendix A).
//!
//! Values are zero above their width. Flags that the manual leaves undefined get the value that current CPUs give them where
//! that is known, else they stay.

use x86defs::{Rflags, Width};

pub(crate) const CF: u64 = Rflags::CF.bits();
pub(crate) const PF: u64 = Rflags::PF.bits();
pub(crate) const AF: u64 = Rflags::AF.bits();
pub(crate) const ZF: u64 = Rflags::ZF.bits();
pub(crate) const SF: u64 = Rflags::SF.bits();
pub(crate) const OF: u64 = Rflags::OF.bits();
/// The six flags that arithmetic sets.
pub(crate) const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// Bits in `width`.
pub(crate) const fn bits(width: Width) -> u32 {
    8 * width as u32
}

const fn when(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

/// The most significant bit of `width`.
pub(crate) const fn top(width: Width) -> u64 {
    1 << (bits(width) - 1)
}

/// `value` with the sign bit of `width` copied upwards.
pub(crate) const fn sign_extend(width: Width, value: u64) -> u64 {
    let unused = 64 - bits(width);
    (((value << unused) as i64) >> unused) as u64
}

/// SF, ZF and PF of a result.
fn szp(width: Width, result: u64) -> u64 {
    when(result & top(width) != 0, SF) | when(result == 0, ZF) | when((result as u8).count_ones().is_multiple_of(2), PF)
}

/// Operations with two operands and one result in the first's place, in the order of the opcode's bits 3..=5.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Binary {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
}

/// The result of `a op b`, and RFLAGS after it.
pub(crate) fn binary(op: Binary, width: Width, a: u64, b: u64, flags: u64) -> (u64, u64) {
    let carry = flags & CF;
    let (result, status) = match op {
        Binary::Add => add(width, a, b, 0),
        Binary::Adc => add(width, a, b, carry),
        Binary::Sub => sub(width, a, b, 0),
        Binary::Sbb => sub(width, a, b, carry),
        Binary::And => (a & b, szp(width, a & b)),
        Binary::Or => (a | b, szp(width, a | b)),
        Binary::Xor => (a ^ b, szp(width, a ^ b)),
    };
    (result, flags & !STATUS | status)
}

fn add(width: Width, a: u64, b: u64, carry: u64) -> (u64, u64) {
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    let result = wide as u64 & width.mask();
    let status = when(wide > u128::from(width.mask()), CF)
        | when((a ^ b ^ result) & 0x10 != 0, AF)
        | when((a ^ result) & (b ^ result) & top(width) != 0, OF);
    (result, status | szp(width, result))
}

fn sub(width: Width, a: u64, b: u64, borrow: u64) -> (u64, u64) {
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & width.mask();
    let status = when(u128::from(a) < u128::from(b) + u128::from(borrow), CF)
        | when((a ^ b ^ result) & 0x10 != 0, AF)
        | when((a ^ b) & (a ^ result) & top(width) != 0, OF);
    (result, status | szp(width, result))
}

/// INC: as ADD 1, but CF stays.
pub(crate) fn inc(width: Width, a: u64, flags: u64) -> (u64, u64) {
    let (result, status) = add(width, a, 1, 0);
    (result, flags & (!STATUS | CF) | status & !CF)
}

/// DEC: as SUB 1, but CF stays.
pub(crate) fn dec(width: Width, a: u64, flags: u64) -> (u64, u64) {
    let (result, status) = sub(width, a, 1, 0);
    (result, flags & (!STATUS | CF) | status & !CF)
}

/// NEG: 0 - a.
pub(crate) fn neg(width: Width, a: u64, flags: u64) -> (u64, u64) {
    let (result, status) = sub(width, 0, a, 0);
    (result, flags & !STATUS | status)
}

/// Shifts and rotates, in the order of ModRM.reg (6 is an alias of SHL).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shift {
    Rol,
    Ror,
    Rcl,
    Rcr,
    Shl,
    Shr,
    Sar,
}

/// The count as the CPU takes it: 6 bits for 64-bit operands, else 5.
const fn count_mask(width: Width) -> u32 {
    if matches!(width, Width::Qword) { 0x3f } else { 0x1f }
}

/// `a` shifted or rotated by the low bits of `count`, and RFLAGS after it. A masked count of zero changes nothing.
pub(crate) fn shift(op: Shift, width: Width, a: u64, count: u8, flags: u64) -> (u64, u64) {
    let count = u32::from(count) & count_mask(width);
    if count == 0 {
        return (a, flags);
    }
    let bits = bits(width);
    let mask = u128::from(width.mask());
    let wide = u128::from(a);
    let msb = |value: u64| value & top(width) != 0;
    let second = |value: u64| value & (top(width) >> 1) != 0;
    let rotated = |result: u64, carry: bool, overflow: bool| (result, flags & !(CF | OF) | when(carry, CF) | when(overflow, OF));
    let shifted = |result: u64, carry: bool, overflow: bool| {
        // AF is undefined; CPUs leave or clear it. It is cleared here.
        (result, flags & !STATUS | szp(width, result) | when(carry, CF) | when(overflow, OF))
    };
    match op {
        Shift::Rol => {
            let n = count % bits;
            let result = ((wide << n | wide >> (bits - n)) & mask) as u64;
            rotated(result, result & 1 != 0, msb(result) != (result & 1 != 0))
        }
        Shift::Ror => {
            let n = count % bits;
            let result = ((wide >> n | wide << (bits - n)) & mask) as u64;
            rotated(result, msb(result), msb(result) != second(result))
        }
        Shift::Rcl | Shift::Rcr => {
            // A rotation of bits + 1 bits, of which CF is the uppermost.
            let n = count % (bits + 1);
            let n = if matches!(op, Shift::Rcl) { n } else { (bits + 1 - n) % (bits + 1) };
            let ring = wide | u128::from(flags & CF) << bits;
            let ring = ring << n | ring >> (bits + 1 - n);
            let result = (ring & mask) as u64;
            let carry = ring >> bits & 1 != 0;
            let overflow = if matches!(op, Shift::Rcl) { msb(result) != carry } else { msb(result) != second(result) };
            rotated(result, carry, overflow)
        }
        Shift::Shl => {
            let out = wide << count;
            let result = (out & mask) as u64;
            let carry = out >> bits & 1 != 0;
            shifted(result, carry, msb(result) != carry)
        }
        Shift::Shr => {
            let result = (wide >> count) as u64;
            shifted(result, wide >> (count - 1) & 1 != 0, msb(a))
        }
        Shift::Sar => {
            let signed = i128::from(sign_extend(width, a) as i64);
            let result = ((signed >> count) as u128 & mask) as u64;
            shifted(result, signed >> (count - 1) & 1 != 0, false)
        }
    }
}

/// SHLD (`left`) or SHRD: `a` shifted by the low bits of `count`, filled from `fill`. For 16-bit operands, counts above 16 have
/// an undefined result; what comes back then is a rotation through both operands, as on CPUs of both vendors.
pub(crate) fn double_shift(left: bool, width: Width, a: u64, fill: u64, count: u8, flags: u64) -> (u64, u64) {
    let count = u32::from(count) & count_mask(width);
    if count == 0 {
        return (a, flags);
    }
    let bits = bits(width);
    let mask = u128::from(width.mask());
    let (a, fill) = (u128::from(a), u128::from(fill));
    let (result, carry) = if count <= bits {
        if left {
            let both = a << bits | fill;
            // What is shifted out above 2 * bits is the carry, taken from `a` itself.
            (((both << count) >> bits & mask) as u64, a >> (bits - count) & 1 != 0)
        } else {
            let both = fill << bits | a;
            ((both >> count & mask) as u64, both >> (count - 1) & 1 != 0)
        }
    } else {
        let n = count - bits;
        if left {
            (((fill << n | a >> (bits - n)) & mask) as u64, fill >> (bits - n) & 1 != 0)
        } else {
            (((fill >> n | a << (bits - n)) & mask) as u64, fill >> (n - 1) & 1 != 0)
        }
    };
    let changed = (a as u64 ^ result) & top(width) != 0;
    (result, flags & !STATUS | szp(width, result) | when(carry, CF) | when(changed, OF))
}

/// MUL (`signed` = false) or one-operand IMUL: low half, high half, RFLAGS.
pub(crate) fn multiply(signed: bool, width: Width, a: u64, b: u64, flags: u64) -> (u64, u64, u64) {
    let (product, fits) = if signed {
        let product = i128::from(sign_extend(width, a) as i64) * i128::from(sign_extend(width, b) as i64);
        let low = sign_extend(width, product as u64 & width.mask());
        (product as u128, i128::from(low as i64) == product)
    } else {
        let product = u128::from(a) * u128::from(b);
        (product, product >> bits(width) == 0)
    };
    let low = product as u64 & width.mask();
    let high = (product >> bits(width)) as u64 & width.mask();
    // SF, ZF, AF and PF are undefined and stay; CF = OF = "the high half says something".
    (low, high, flags & !(CF | OF) | when(!fits, CF | OF))
}

/// DIV or IDIV of `high:low` by `divisor`: quotient and remainder, or `None` for #DE. All flags are undefined and stay.
pub(crate) fn divide(signed: bool, width: Width, high: u64, low: u64, divisor: u64) -> Option<(u64, u64)> {
    let dividend = u128::from(high) << bits(width) | u128::from(low);
    if signed {
        let unused = 128 - 2 * bits(width);
        let dividend = ((dividend << unused) as i128) >> unused;
        let divisor = i128::from(sign_extend(width, divisor) as i64);
        let quotient = dividend.checked_div(divisor)?;
        let remainder = dividend.checked_rem(divisor)?;
        let fits = i128::from(sign_extend(width, quotient as u64 & width.mask()) as i64) == quotient;
        fits.then_some((quotient as u64 & width.mask(), remainder as u64 & width.mask()))
    } else {
        let quotient = dividend.checked_div(u128::from(divisor))?;
        let remainder = dividend.checked_rem(u128::from(divisor))?;
        (quotient <= u128::from(width.mask())).then_some((quotient as u64, remainder as u64))
    }
}

/// What TZCNT, LZCNT and POPCNT count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Count {
    TrailingZeros,
    LeadingZeros,
    Ones,
}

/// TZCNT, LZCNT or POPCNT of `a`, and RFLAGS after it.
pub(crate) fn count(what: Count, width: Width, a: u64, flags: u64) -> (u64, u64) {
    let bits = bits(width);
    match what {
        Count::Ones => (u64::from(a.count_ones()), flags & !STATUS | when(a == 0, ZF)),
        Count::TrailingZeros | Count::LeadingZeros => {
            let n = if what == Count::TrailingZeros { a.trailing_zeros().min(bits) } else { a.leading_zeros() - (64 - bits) };
            (u64::from(n), flags & !(CF | ZF) | when(a == 0, CF) | when(n == 0, ZF))
        }
    }
}

/// BSF (`reverse` = false) or BSR: the bit's number, or `None` if `a` is zero and the destination stays; and RFLAGS after it.
pub(crate) fn scan(reverse: bool, a: u64, flags: u64) -> (Option<u64>, u64) {
    if a == 0 {
        return (None, flags | ZF);
    }
    let n = if reverse { 63 - a.leading_zeros() } else { a.trailing_zeros() };
    (Some(u64::from(n)), flags & !ZF)
}

/// Condition code `code` (0..=15, as in the low bits of Jcc, SETcc and CMOVcc; SDM vol. 1, appendix B).
pub(crate) const fn condition(code: u8, flags: u64) -> bool {
    let less = (flags & SF != 0) != (flags & OF != 0);
    let holds = match code >> 1 & 7 {
        0 => flags & OF != 0,
        1 => flags & CF != 0,
        2 => flags & ZF != 0,
        3 => flags & (CF | ZF) != 0,
        4 => flags & SF != 0,
        5 => flags & PF != 0,
        6 => less,
        _ => less || flags & ZF != 0,
    };
    holds != (code & 1 != 0)
}
