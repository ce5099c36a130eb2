//! The page lent to a CPU that virtualises local APICs: it makes no difference to the guest.

use super::*;
use proptest::prelude::*;
use std::vec::Vec;
use x86defs::VirtualApicPage as _;

const SVR: u32 = 0x80f;
const TPR: u32 = 0x808;
const EOI: u32 = 0x80b;
const SELF_IPI: u32 = 0x83f;

/// The CPU's part (SDM vol. 3C, 31.1.2 to 31.2.2), which is nowhere but in the page and in RVI and SVI.
struct Cpu<'a> {
    apic: &'a LocalApic,
    requested: u8,
    in_service: u8,
    eoi_exits: [u32; 8],
}

impl<'a> Cpu<'a> {
    fn new(apic: &'a LocalApic) -> Self {
        let mut cpu = Self { apic, requested: 0, in_service: apic.lend_page(), eoi_exits: [0; 8] };
        assert!(apic.attention(), "there is something to prepare");
        cpu.prepare();
        cpu
    }

    /// What the hypervisor does before an entry.
    fn prepare(&mut self) {
        if let Some((vectors, in_service)) = self.apic.changed_levels() {
            self.eoi_exits = vectors;
            self.in_service = in_service;
        }
        self.requested = self.apic.hand_over();
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        &self.apic.registers()[offset as usize / 4]
    }

    fn vectors(&self, first: u32) -> [u32; 8] {
        core::array::from_fn(|n| self.word(first + 16 * n as u32).load(Relaxed))
    }

    fn put(&self, first: u32, vector: u8, set: bool) {
        let word = self.word(first + u32::from(vector >> 5) * 16);
        let bit = 1 << (vector & 31);
        word.store(if set { word.load(Relaxed) | bit } else { word.load(Relaxed) & !bit }, Relaxed);
    }

    fn set_ppr(&self) {
        let tpr = self.word(reg::TPR).load(Relaxed);
        let in_service = u32::from(self.in_service);
        self.word(reg::PPR).store(if tpr >> 4 >= in_service >> 4 { tpr } else { in_service & 0xf0 }, Relaxed);
    }

    /// An entry, and the delivery of what can be delivered.
    fn enter(&mut self) -> Option<u8> {
        self.prepare();
        self.set_ppr();
        let vector = self.requested;
        if vector >> 4 <= self.word(reg::PPR).load(Relaxed) as u8 >> 4 {
            return None;
        }
        self.put(reg::ISR, vector, true);
        self.put(reg::IRR, vector, false);
        self.in_service = vector;
        self.requested = random::highest(self.vectors(reg::IRR)).unwrap_or(0);
        self.word(reg::PPR).store(u32::from(vector & 0xf0), Relaxed);
        Some(vector)
    }

    fn set_tpr(&mut self, value: u8) {
        self.word(reg::TPR).store(value.into(), Relaxed);
        self.set_ppr();
    }

    fn eoi(&mut self) -> Effect {
        let vector = self.in_service;
        self.put(reg::ISR, vector, false);
        self.in_service = random::highest(self.vectors(reg::ISR)).unwrap_or(0);
        self.set_ppr();
        if self.eoi_exits[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0 {
            self.apic.virtual_eoi(vector)
        } else {
            Effect::None
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Post(u8, bool),
    SelfIpi(u8),
    Deliver,
    Eoi,
    /// By an instruction that the CPU leaves to software.
    EoiByUs,
    Tpr(u8),
    Svr(u32),
    /// The page comes back to software for a moment.
    Return,
    Init,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<u8>(), any::<bool>()).prop_map(|(vector, level)| Step::Post(vector, level)),
        2 => any::<u8>().prop_map(Step::SelfIpi),
        8 => Just(Step::Deliver),
        6 => Just(Step::Eoi),
        2 => Just(Step::EoiByUs),
        2 => any::<u8>().prop_map(Step::Tpr),
        1 => prop_oneof![Just(0xff), Just(0x1ff), Just(0x11ff)].prop_map(Step::Svr),
        1 => Just(Step::Return),
        1 => Just(Step::Init),
    ]
}

proptest! {
    #[test]
    fn a_lent_page_makes_no_difference(steps in prop::collection::vec(step(), 0..120)) {
        compare(&steps)?;
    }
}

/// A level-triggered interrupt of a vector whose edge-triggered one is in service: the EOI of that is announced as well (SDM vol. 3A, 11.8.4).
#[test]
fn a_vector_in_service_becomes_level_triggered() {
    compare(&[Step::Post(240, false), Step::Deliver, Step::Post(240, true), Step::Eoi, Step::Deliver, Step::Eoi]).unwrap();
}

/// Does the same with an APIC whose page is lent and one whose page is not.
fn compare(steps: &[Step]) -> Result<(), TestCaseError> {
    let (plain, lent) = (x2apic(3), x2apic(3));
    let mut cpu = Cpu::new(&lent);
    for &step in steps {
        match step {
            Step::Post(vector, level) => {
                let trigger = Trigger::from_bit(level);
                let refused = [&plain, &lent].map(|apic| apic.post(vector, trigger) == Posted::Refused);
                prop_assert_eq!(refused[0], refused[1]);
            }
            // The CPU leaves the TMR as it is then: the EOI is announced to others, who know that it is none of theirs.
            Step::SelfIpi(vector) if plain.is_level(vector) => {}
            Step::SelfIpi(vector) => {
                plain.msr_write(NOW, SELF_IPI, vector.into()).unwrap();
                if vector < 16 {
                    cpu.word(reg::SELF_IPI).store(vector.into(), Relaxed);
                    prop_assert_eq!(lent.virtual_write(reg::SELF_IPI), Effect::None);
                } else if lent.save().svr & 0x100 != 0 {
                    // As the CPU would; a disabled one refuses in software only, so that is not compared.
                    cpu.put(reg::IRR, vector, true);
                    lent.look_again();
                }
            }
            Step::Deliver => {
                let expected = match plain.take() {
                    Some(Pending::Lapic(vector)) => Some(vector),
                    other => {
                        prop_assert_eq!(other, None);
                        None
                    }
                };
                // As if the processor were about to halt.
                lent.look_again();
                prop_assert_eq!(lent.pending(), expected.map(Pending::Lapic));
                prop_assert_eq!(cpu.enter(), expected);
            }
            Step::Eoi => {
                // The guest goes on only after what was requested is prepared: whoever requests fetches it out of the guest.
                cpu.prepare();
                prop_assert_eq!(cpu.eoi(), plain.msr_write(NOW, EOI, 0).unwrap());
            }
            Step::EoiByUs => {
                let effect = lent.eoi_in_page().map_or(Effect::None, |vector| Effect::Eoi { vector });
                prop_assert_eq!(effect, plain.msr_write(NOW, EOI, 0).unwrap());
                prop_assert!(cpu.in_service == 0 || lent.attention(), "the CPU must hear of it");
                // Before it runs again.
                cpu.prepare();
                cpu.set_ppr();
            }
            Step::Tpr(value) => {
                plain.msr_write(NOW, TPR, value.into()).unwrap();
                cpu.set_tpr(value);
            }
            Step::Svr(value) => {
                prop_assert_eq!(plain.msr_write(NOW, SVR, value.into()), lent.msr_write(NOW, SVR, value.into()));
            }
            Step::Return => {
                lent.take_page_back();
                prop_assert_eq!(lent.save(), plain.save());
                prop_assert_eq!(lent.highest_pending(), plain.highest_pending());
                cpu = Cpu::new(&lent);
            }
            Step::Init => {
                plain.init();
                lent.take_page_back();
                lent.init();
                cpu = Cpu::new(&lent);
            }
        }
        prop_assert_eq!(lent.save(), plain.save());
        prop_assert_eq!(lent.ppr(), plain.ppr());
    }
    Ok(())
}

/// What the CPU has not delivered when the processor halts ends the HLT.
#[test]
fn what_was_handed_over_wakes_a_halted_processor() {
    let apic = x2apic(0);
    let mut cpu = Cpu::new(&apic);
    assert_eq!(cpu.enter(), None);
    assert!(!apic.attention());
    post(&apic, 0x41);
    assert!(apic.attention());
    assert_eq!(apic.hand_over(), 0x41);
    assert!(!apic.attention(), "it is the CPU's to deliver now");
    apic.look_again();
    assert_eq!((apic.attention(), apic.pending()), (true, Some(Pending::Lapic(0x41))));
    cpu.set_tpr(0x40);
    assert_eq!(apic.pending(), None);
    let words: Vec<u32> = apic.save().irr.into();
    assert_eq!(words, [0, 0, 2, 0, 0, 0, 0, 0]);
}
