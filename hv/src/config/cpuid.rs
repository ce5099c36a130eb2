//! `cpuid=`: what a guest's CPUs are to show differently, in xl's two forms.
//!
//! libxl's: `"host,sse3=0,family=6"`. xend's: `["0x1:ecx=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx0", "0x7,0:ebx=..."]`, with the highest bit first.

use super::{Key, Reader, Reason, type_name, xl_number};
use crate::vcpu::features::{CpuidMask, Unavailable, Word};
use alloc::{format, string::String};
use core::fmt;
use toml::de::DeValue;

/// What is wrong with a value of `cpuid`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CpuidError {
    /// A string that does not begin with `host`.
    NotHost,
    /// Part of a string that is no `NAME=VALUE`.
    NotAPair(String),
    UnknownName(String),
    /// A feature's value is none.
    BadFlag {
        name: String,
        value: String,
    },
    /// Not a number of `min..=max`.
    BadNumber {
        name: &'static str,
        value: String,
        min: u32,
        max: u32,
    },
    /// Nothing can be changed there, by whatever name.
    Fixed(String),
    /// A string of a list that is no `LEAF,SUBLEAF:REGISTER=BITS`.
    BadEntry(String),
    /// Not 32 of the characters 0, 1, x, k and s.
    BadBits(String),
    /// Wanted, and not to be had on this host.
    Unavailable(Unavailable),
    /// The kernel is entered in 64-bit mode, which the guest's CPUs do not have.
    EntersLongMode,
}

impl fmt::Display for CpuidError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotHost => f.write_str("must begin with \"host\", or be a list of strings"),
            Self::NotAPair(item) => write!(f, "{item:?} is not NAME=VALUE"),
            Self::UnknownName(name) => write!(f, "no feature is named {name:?}"),
            Self::BadFlag { name, value } => {
                write!(f, "{}={}: must be 0, 1, x, k or s", name.escape_debug(), value.escape_debug())
            }
            Self::BadNumber { name, value, min, max } => {
                write!(f, "{name}={}: must be a number of {min} to {max}, or x, k or s", value.escape_debug())
            }
            Self::Fixed(what) => write!(f, "{} cannot be changed", what.escape_debug()),
            Self::BadEntry(item) => write!(f, "{item:?} is not LEAF:REGISTER=BITS or LEAF,SUBLEAF:REGISTER=BITS"),
            Self::BadBits(bits) => write!(f, "{bits:?} is not 32 characters 0, 1, x, k and s"),
            Self::Unavailable(Unavailable { word: Word::MaxLeaf, .. }) => {
                write!(f, "maxleaf: the guest's CPUs have no leaf above {:#x}", crate::vcpu::MAX_BASIC)
            }
            Self::Unavailable(missing) => {
                let (leaf, subleaf, register) = missing.word.place();
                match name_of(missing.word, missing.bit) {
                    Some(name) => write!(f, "{name}=1: ")?,
                    None => write!(f, "{leaf:#x},{subleaf}:{} bit {}: ", register_name(register), missing.bit)?,
                }
                f.write_str("the guest's CPUs cannot have it, only what the host has and Bulkhead offers can be kept")
            }
            Self::EntersLongMode => f.write_str("lm=0: the kernel is entered in 64-bit mode"),
        }
    }
}

/// Features by libxl's names, one for each bit from bit 0; `.` for those without. Written as [`same_name`] compares them.
const NAMES: [(Word, &str); 12] = [
    (
        Word::L1Ecx,
        "sse3 pclmulqdq dtes64 monitor dscpl vmx smx est tm2 ssse3 cntxid . fma cmpxchg16 xtpr pdcm . pcid dca sse41 sse42 x2apic \
         movbe popcnt tscdeadline aes xsave osxsave avx f16c rdrand hypervisor",
    ),
    (
        Word::L1Edx,
        "fpu vme de pse tsc msr pae mce cmpxchg8 apic . sysenter mtrr pge mca cmov pat pse36 psn clfsh . ds acpi mmx fxsr sse sse2 \
         ss htt tm ia64 pbe",
    ),
    (Word::L6Eax, ". . arat"),
    (
        Word::L7Ebx,
        "fsgsbase tscadjust . bmi1 hle avx2 . smep bmi2 erms invpcid rtm cmt . mpx . avx512f avx512dq rdseed adx smap avx512ifma . \
         clflushopt clwb proctrace avx512pf avx512er avx512cd sha avx512bw avx512vl",
    ),
    (
        Word::L7Ecx,
        "prefetchwt1 avx512vbmi umip pku ospke . avx512vbmi2 cetss gfni vaes vpclmulqdq avx512vnni avx512bitalg . avx512vpopcntdq \
         . la57 . . . . . rdpid . . cldemote . . . . . pks",
    ),
    (
        Word::L7Edx,
        ". . avx5124vnniw avx5124fmaps fsrm . . . avx512vp2intersect srbdsctrl mdclear . . . serialize . tsxldtrk . . . cetibt . . \
         avx512fp16 . . ibrsb stibp l1dflush archcaps corecaps ssbd",
    ),
    (Word::L71Eax, ". . . . avxvnni avx512bf16 . . . . fzrm fsrs fsrcs . . . . . . wrmsrns"),
    (Word::LD1Eax, "xsaveopt xsavec xgetbv1 xsaves"),
    (
        Word::X1Ecx,
        "lahfsahf cmplegacy svm extapic altmovcr8 abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt . lwp fma4 . . nodeid \
         . tbm topoext perfctrcore perfctrnb",
    ),
    (Word::X1Edx, ". . . . . . . . . . . syscall . . . . . . . . nx . mmxext . . ffxsr page1gb rdtscp . lm 3dnowext 3dnow"),
    (Word::X7Edx, ". . . . . . . . invtsc"),
    (
        Word::X8Ebx,
        "clzero . rstrfperrptrs . . . . . . wbnoinvd . . ibpb . ibrs amdstibp ibrsalways stibpalways ibrsfast ibrssamemode nolmsl \
         . . ppin amdssbd virtssbd ssbno . psfd btcno ibpbret",
    ),
];

/// Features in leaves that guests do not have.
const NEVER: &str = "svmnpt svmlbrv svmnrips svmtscrate svmvmcbclean svmdecode svmpausefilt lfence+ nscb cetsss intelpsfd mcdtno";
/// Numbers that follow from `vcpus`, or are the hypervisor's.
const FIXED: &str = "proccount localapicid procpkg nc apicidsize maxhvleaf";

/// Numbers that can be changed: where they are, and what they may be.
const NUMBERS: [(&str, Word, u32, u32); 6] = [
    ("maxleaf", Word::MaxLeaf, 1, crate::vcpu::MAX_BASIC),
    ("family", Word::Signature, 0, 0xf + 0xff),
    ("model", Word::Signature, 0, 0xff),
    ("stepping", Word::Signature, 0, 0xf),
    ("brandid", Word::Brand, 0, 0xff),
    ("clflush", Word::Brand, 0, 0xff),
];

/// Where a number is in its word, and what stands there for it (SDM vol. 2A "CPUID", leaf 1).
fn place_number(name: &str, number: u32) -> (u32, u32) {
    match name {
        "family" if number > 0xf => (0x0ff0_0f00, 0xf00 | (number - 0xf) << 20),
        "family" => (0x0ff0_0f00, number << 8),
        "model" => (0x000f_00f0, (number & 0xf) << 4 | number >> 4 << 16),
        "stepping" => (0xf, number),
        "brandid" => (0xff, number),
        "clflush" => (0xff00, number << 8),
        _ => (u32::MAX, number),
    }
}

/// libxl has `sse4_1` and `sse4.1`, `tsc-deadline` and `tsc_adjust`; which of these it is, nobody remembers.
fn same_name(given: &str, known: &str) -> bool {
    given.bytes().filter(|b| !b"-_.".contains(b)).eq(known.bytes())
}

fn has_name(list: &str, given: &str) -> bool {
    list.split(' ').any(|known| same_name(given, known))
}

/// The feature with a name.
fn find(given: &str) -> Option<(Word, u32)> {
    let find = |list: &str| list.split(' ').position(|known| known != "." && same_name(given, known));
    NAMES.iter().find_map(|&(word, list)| Some((word, find(list)? as u32)))
}

fn name_of(word: Word, bit: u32) -> Option<&'static str> {
    let (_, list) = NAMES.iter().find(|(named, _)| *named == word)?;
    list.split(' ').nth(bit as usize).filter(|name| *name != ".")
}

const fn register_name(register: usize) -> &'static str {
    match register {
        0 => "eax",
        1 => "ebx",
        2 => "ecx",
        _ => "edx",
    }
}

/// x: as the policy has it. k: as the host has it, s: the same, also after a migration; the policy has it from the host.
fn keeps(value: &str) -> bool {
    matches!(value, "x" | "k" | "s")
}

/// One `NAME=VALUE` of libxl's form.
fn pair(mask: &mut CpuidMask, item: &str) -> Result<(), CpuidError> {
    let (name, value) = item.split_once('=').ok_or_else(|| CpuidError::NotAPair(item.into()))?;
    let (name, value) = (name.trim(), value.trim());
    if let Some(&(name, word, min, max)) = NUMBERS.iter().find(|(known, ..)| *known == name) {
        let bits = place_number(name, 0).0;
        if keeps(value) {
            mask.ask(word, bits, 0, 0);
            return Ok(());
        }
        let number = xl_number(value).and_then(|n| u32::try_from(n).ok()).filter(|n| (min..=max).contains(n));
        let number = number.ok_or_else(|| CpuidError::BadNumber { name, value: value.into(), min, max })?;
        let set = place_number(name, number).1;
        mask.ask(word, bits, !set, set);
        return Ok(());
    }
    if has_name(FIXED, name) {
        return if keeps(value) { Ok(()) } else { Err(CpuidError::Fixed(name.into())) };
    }
    let never = has_name(NEVER, name);
    let feature = find(name);
    if feature.is_none() && !never {
        return Err(CpuidError::UnknownName(name.into()));
    }
    let (clear, set) = match value {
        "0" => (u32::MAX, 0),
        "1" if never => return Err(CpuidError::Fixed(name.into())),
        "1" => (0, u32::MAX),
        value if keeps(value) => (0, 0),
        _ => return Err(CpuidError::BadFlag { name: name.into(), value: value.into() }),
    };
    let Some((word, bit)) = feature else { return Ok(()) };
    if clear & word.fixed() >> bit & 1 != 0 {
        return Err(CpuidError::Fixed(name.into()));
    }
    mask.ask(word, 1 << bit, clear, set);
    Ok(())
}

/// 32 characters, the highest bit first: the bits that are 0 and those that are 1.
fn bits(text: &str) -> Result<(u32, u32), CpuidError> {
    let bad = || CpuidError::BadBits(text.into());
    if text.len() != 32 {
        return Err(bad());
    }
    text.bytes().try_fold((0, 0), |(clear, set), b| match b {
        b'0' => Ok((clear << 1 | 1, set << 1)),
        b'1' => Ok((clear << 1, set << 1 | 1)),
        b'x' | b'k' | b's' => Ok((clear << 1, set << 1)),
        _ => Err(bad()),
    })
}

/// One string of xend's form.
fn entry(mask: &mut CpuidMask, item: &str) -> Result<(), CpuidError> {
    let bad = || CpuidError::BadEntry(item.into());
    let number = |text: &str| xl_number(text.trim()).and_then(|n| u32::try_from(n).ok()).ok_or_else(bad);
    let (place, registers) = item.split_once(':').ok_or_else(bad)?;
    let (leaf, subleaf) = match place.split_once(',') {
        Some((leaf, subleaf)) => (number(leaf)?, Some(number(subleaf)?)),
        None => (number(place)?, None),
    };
    for part in registers.split(',') {
        let (name, text) = part.split_once('=').ok_or_else(bad)?;
        let register = (0..4).find(|&n| register_name(n) == name.trim()).ok_or_else(bad)?;
        let (clear, set) = bits(text.trim())?;
        let here = |word: &Word| {
            let (its_leaf, its_subleaf, its_register) = word.place();
            // Of a leaf without subleaves, any is the leaf.
            let same = !word.has_subleaves() || subleaf.unwrap_or(0) == its_subleaf;
            its_leaf == leaf && its_register == register && same
        };
        let Some(word) = Word::ALL.into_iter().find(here) else {
            if clear | set != 0 {
                return Err(CpuidError::Fixed(format!("{}:{}", place.trim(), register_name(register))));
            }
            continue;
        };
        // A feature that is always there may be asked for.
        let is_feature = NAMES.iter().any(|(named, _)| *named == word);
        let fixed = word.fixed() & (clear | if is_feature { 0 } else { set });
        if fixed != 0 {
            let what = format!("{}:{} bit {}", place.trim(), register_name(register), fixed.trailing_zeros());
            return Err(CpuidError::Fixed(what));
        }
        mask.ask(word, u32::MAX, clear, set);
    }
    Ok(())
}

impl Reader<'_, '_> {
    pub(super) fn cpuid(&mut self) -> CpuidMask {
        let mut mask = CpuidMask::default();
        match self.value(Key::Cpuid) {
            None => {}
            Some(DeValue::String(text)) => {
                let mut items = text.split(',').map(str::trim);
                if items.next() != Some("host") {
                    self.refuse(Key::Cpuid, Reason::Cpuid(CpuidError::NotHost));
                    return mask;
                }
                for item in items {
                    self.note(pair(&mut mask, item));
                }
            }
            Some(DeValue::Array(list)) => {
                for item in list {
                    let result = match item.get_ref().as_str() {
                        Some(text) => entry(&mut mask, text).map_err(Reason::Cpuid),
                        None => Err(Reason::WrongType { expected: "a list of strings", found: type_name(item.get_ref()) }),
                    };
                    if let Err(reason) = result {
                        self.refuse(Key::Cpuid, reason);
                    }
                }
            }
            Some(other) => {
                let expected = "a string or a list of strings";
                self.refuse(Key::Cpuid, Reason::WrongType { expected, found: type_name(other) });
            }
        }
        let least = mask.apply(Word::MaxLeaf, crate::vcpu::MAX_BASIC);
        if least == 0 {
            self.refuse(Key::Cpuid, Reason::Cpuid(CpuidError::Fixed("0:eax to zero".into())));
        }
        mask
    }

    fn note(&mut self, result: Result<(), CpuidError>) {
        if let Err(error) = result {
            self.refuse(Key::Cpuid, Reason::Cpuid(error));
        }
    }
}
