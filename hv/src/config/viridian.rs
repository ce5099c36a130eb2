//! `viridian`: what of Hyper-V's interface a guest is offered, in xl's forms: a Boolean, or a list of groups of which one with `!` in front is taken away
//! again.

use super::{DeValue, Key, Reader, Reason, type_name};
use bitflags::bitflags;

bitflags! {
    /// Groups of what Hyper-V offers, by xl's names.
    #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
    pub struct Viridian: u8 {
        /// Interface, hypercall page, processor index.
        const BASE = 1 << 0;
        /// Frequencies of the TSC and of the local APICs' timers.
        const FREQ = 1 << 1;
        /// Reference time as a counter.
        const TIME_REF_COUNT = 1 << 2;
        /// Reference time as a page beside the TSC.
        const REFERENCE_TSC = 1 << 3;
        /// Reports of crashes.
        const CRASH_CTL = 1 << 4;
    }
}

/// What `viridian = true` stands for, and the groups `defaults` and `all`.
const NAMES: [(&str, Viridian); 7] = [
    ("base", Viridian::BASE),
    ("freq", Viridian::FREQ),
    ("time_ref_count", Viridian::TIME_REF_COUNT),
    ("reference_tsc", Viridian::REFERENCE_TSC),
    ("crash_ctl", Viridian::CRASH_CTL),
    ("defaults", Viridian::all()),
    ("all", Viridian::all()),
];

/// xl's other groups.
const UNSUPPORTED: [&str; 8] =
    ["hcall_remote_tlb_flush", "apic_assist", "synic", "stimer", "hcall_ipi", "ex_processor_masks", "no_vp_limit", "cpu_hotplug"];

const EXPECTED: &str = "true, false, or a list of \"base\", \"freq\", \"time_ref_count\", \"reference_tsc\", \"crash_ctl\", \"defaults\", \"all\", \
                        each maybe with ! in front";

impl Reader<'_, '_> {
    pub(super) fn viridian(&mut self) -> Option<Viridian> {
        let key = Key::Viridian;
        let Some(DeValue::Array(list)) = self.value(key) else {
            return self.boolean(key, false).map(|on| if on { Viridian::all() } else { Viridian::empty() });
        };
        let mut offered = Viridian::empty();
        for value in list {
            let Some(text) = value.get_ref().as_str() else {
                self.refuse(key, Reason::BadValue { value: type_name(value.get_ref()).into(), expected: EXPECTED });
                return None;
            };
            let (name, taken_away) = text.strip_prefix('!').map_or((text, false), |name| (name, true));
            match NAMES.iter().find(|(known, _)| *known == name) {
                Some((_, groups)) => offered.set(*groups, !taken_away),
                // What is not there need not be taken away.
                None if UNSUPPORTED.contains(&name) && taken_away => {}
                None if UNSUPPORTED.contains(&name) => {
                    self.refuse(key, Reason::UnsupportedValue { value: text.into() });
                    return None;
                }
                None => {
                    self.refuse(key, Reason::BadValue { value: text.into(), expected: EXPECTED });
                    return None;
                }
            }
        }
        // All else stands on it (xl does the same).
        if !offered.is_empty() {
            offered |= Viridian::BASE;
        }
        Some(offered)
    }
}
