//! Segment registers between the architecture's form and the VMCS's. Pure.
//!
//! Manual: see [`super::spec`]: 26.4.1 for the fields, 28.3.1.2 for what an entry checks.

use super::spec::{UNUSABLE, guest};
use x86defs::{Segment, SegmentAttributes, SegmentRegister};

/// The four VMCS fields of a segment register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentFields {
    pub selector: u32,
    pub base: u32,
    pub limit: u32,
    pub access_rights: u32,
}

/// The VMCS numbers ES, CS, SS, DS, FS, GS, LDTR, TR in this order, two apart (B.1.2, B.3.3, B.4.3).
#[inline]
#[must_use]
pub const fn fields(register: SegmentRegister) -> SegmentFields {
    let step = 2 * register as u32;
    SegmentFields {
        selector: guest::ES_SELECTOR + step,
        base: guest::ES_BASE + step,
        limit: guest::ES_LIMIT + step,
        access_rights: guest::ES_ACCESS_RIGHTS + step,
    }
}

/// VMCS access rights to attributes: bits 15:12 (AVL, L, D/B, G) move next to bits 7:0, and bit 16 becomes the unusable mark.
#[must_use]
pub const fn attributes(access_rights: u32) -> SegmentAttributes {
    let unusable = if access_rights & UNUSABLE != 0 { SegmentAttributes::UNUSABLE.0 } else { 0 };
    SegmentAttributes((access_rights & 0xff | access_rights >> 4 & 0xf00) as u16 | unusable)
}

/// Attributes to VMCS access rights. A segment that is not present is unusable: loading a null selector leaves it so, and the checks of
/// an entry want P in every usable one.
#[must_use]
pub const fn access_rights(attributes: SegmentAttributes) -> u32 {
    let raw = attributes.0 as u32;
    let rights = raw & 0xff | (raw & 0xf00) << 4;
    if attributes.unusable() || !attributes.present() { rights | UNUSABLE } else { rights }
}

/// A segment as the VMCS must hold it for `register`: what an entry would refuse, but the architecture does not care about, is put right.
#[must_use]
pub const fn prepare(register: SegmentRegister, segment: Segment) -> (u32, u32) {
    let mut rights = access_rights(segment.attributes);
    let mut limit = segment.limit;
    match register {
        // TR is always usable and busy: type 11, or 3 for a 16-bit one (not in IA-32e mode, where 11 is the only one).
        SegmentRegister::Tr => {
            let kind = if matches!(rights & 0xf, 1 | 3) { 3 } else { 0xb };
            rights = rights & 0xf0e0 & !UNUSABLE | kind | 0x80;
        }
        SegmentRegister::Ldtr if rights & UNUSABLE == 0 => rights = rights & 0xf0e0 | 2,
        // CS is always usable, and accessed. It has nothing in it only when a task switch has failed to load it.
        SegmentRegister::Cs if rights & UNUSABLE != 0 => rights = rights & 0x60 | 0x9b,
        SegmentRegister::Cs => rights |= 0x91,
        _ if rights & UNUSABLE == 0 => rights |= 0x11,
        _ => {}
    }
    // 28.3.1.2: G must be 0 if the low 12 limit bits are not all ones, and 1 if any of the high 12 bits is set.
    if rights & UNUSABLE == 0 {
        if limit & 0xfff != 0xfff && limit & 0xfff0_0000 != 0 {
            limit |= 0xfff;
        }
        if limit & 0xfff0_0000 != 0 {
            rights |= 1 << 15;
        } else if limit & 0xfff != 0xfff {
            rights &= !(1 << 15);
        }
    }
    (limit, rights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};
    use x86defs::SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ldtr, Ss, Tr};

    #[test]
    fn fields_match_the_encodings() {
        assert_eq!(fields(Es).selector, 0x800);
        assert_eq!(fields(Cs), SegmentFields { selector: 0x802, base: 0x6808, limit: 0x4802, access_rights: 0x4816 });
        assert_eq!(fields(Tr), SegmentFields { selector: 0x80e, base: 0x6814, limit: 0x480e, access_rights: 0x4822 });
        assert_eq!(fields(Gs).base, guest::GS_BASE);
        assert_eq!(fields(Ldtr).access_rights, guest::LDTR_ACCESS_RIGHTS);
    }

    #[test]
    fn rights_convert() {
        let code = Segment::flat(8, 0xb, true);
        assert_eq!(access_rights(code.attributes), 0xa09b);
        assert_eq!(attributes(0xa09b), code.attributes);
        assert_eq!(access_rights(Segment::flat(16, 3, false).attributes), 0xc093);
        assert_eq!(access_rights(SegmentAttributes::default()) & UNUSABLE, UNUSABLE);
        assert!(attributes(0x1_0000).unusable());
        assert_eq!(attributes(0x1_c093), SegmentAttributes(0x1c93));
    }

    #[test]
    fn the_task_register_is_busy_and_usable_in_every_mode() {
        let tr = |raw| prepare(Tr, Segment { attributes: SegmentAttributes(raw), limit: 0x67, ..Segment::default() }).1;
        assert_eq!(tr(0x8b), 0x8b);
        assert_eq!(tr(0x89), 0x8b, "available becomes busy");
        assert_eq!(tr(0x83), 0x83, "a 16-bit TSS stays one");
        assert_eq!(tr(0x81), 0x83);
        assert_eq!(tr(0), 0x8b);
        assert_eq!(tr(0x1000), 0x8b);
    }

    #[test]
    fn a_code_segment_that_could_not_be_loaded_is_enterable() {
        let cs = |raw| prepare(Cs, Segment { attributes: SegmentAttributes(raw), ..Segment::default() }).1;
        assert_eq!(cs(0x1060), 0xfb, "with the privilege level that it is to have");
        assert_eq!(cs(0), 0x9b);
        assert_eq!(cs(0xc9a), 0xc09b & !0x8000, "a limit below 4 KiB is not granular");
    }

    #[test]
    fn granularity_follows_the_limit() {
        let (limit, rights) = prepare(Ds, Segment { limit: 0x1234_5678, ..Segment::flat(0, 3, false) });
        assert_eq!((limit, rights >> 15 & 1), (0x1234_5fff, 1));
        let (limit, rights) = prepare(Ss, Segment { limit: 0xfffe, ..Segment::flat(0, 3, false) });
        assert_eq!((limit, rights >> 15 & 1), (0xfffe, 0));
        let (limit, rights) = prepare(Fs, Segment::flat(0, 2, false));
        assert_eq!((limit, rights), (0xffff_ffff, 0xc093));
    }

    proptest! {
        /// The checks of 28.3.1.2 that do not depend on the guest's mode hold whatever a caller passes.
        #[test]
        fn prepared_segments_pass_the_entry_checks(raw in any::<u16>(), limit in any::<u32>(), index in 0usize..8) {
            let register = [Es, Cs, Ss, Ds, Fs, Gs, Ldtr, Tr][index];
            let (limit, rights) = prepare(register, Segment { attributes: SegmentAttributes(raw & 0x1fff), limit, ..Segment::default() });
            assert_eq!(rights & 0xfffe_0f00, 0, "reserved bits");
            if matches!(register, Cs | Tr) {
                assert_eq!(rights & UNUSABLE, 0);
            }
            if rights & UNUSABLE == 0 {
                assert_ne!(rights & 0x80, 0, "present");
                let system = matches!(register, Ldtr | Tr);
                assert_eq!(rights & 0x10 == 0, system, "S");
                assert!(system || rights & 1 != 0, "accessed");
                if limit & 0xfff != 0xfff {
                    assert_eq!(rights >> 15 & 1, 0);
                }
                if limit & 0xfff0_0000 != 0 {
                    assert_eq!(rights >> 15 & 1, 1);
                }
            }
        }
    }
}
