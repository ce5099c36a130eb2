//! Another CPU posts at each place where the owner, or a poster, is between two atomic steps. Unlike the threads' tests these meet every
//! such place, and each time.

use super::*;
use crate::lapic::interleave::testing::{at_point, cancel};
use proptest::prelude::*;
use std::{sync::Arc, vec, vec::Vec};

/// What the owner does while another CPU posts.
#[derive(Clone, Copy, Debug)]
enum Owner {
    Pending,
    Accept,
    Eoi,
    Tpr(u8),
    /// Posts to itself.
    Post(u8),
}

/// What another CPU does in the middle of that.
#[derive(Clone, Copy, Debug)]
enum Other {
    Post(u8),
    Lint0(bool),
    Nmi,
}

/// Vectors that share and do not share an IRR word and a priority class.
fn vector() -> impl Strategy<Value = u8> {
    prop_oneof![Just(0x31u8), Just(0x35), Just(0x41), Just(0x45), Just(0xd1), Just(0xe1)]
}

fn owner() -> impl Strategy<Value = Owner> {
    prop_oneof![
        3 => Just(Owner::Pending),
        3 => Just(Owner::Accept),
        2 => Just(Owner::Eoi),
        1 => prop_oneof![Just(0u8), Just(0x30), Just(0x40), Just(0xf0)].prop_map(Owner::Tpr),
        2 => vector().prop_map(Owner::Post),
    ]
}

fn other() -> impl Strategy<Value = Other> {
    prop_oneof![4 => vector().prop_map(Other::Post), 1 => any::<bool>().prop_map(Other::Lint0), 1 => Just(Other::Nmi)]
}

impl Other {
    fn act(self, apic: &LocalApic) {
        match self {
            Self::Post(vector) => {
                apic.post(vector, Trigger::Edge);
            }
            Self::Lint0(high) => {
                apic.set_lint0(high);
            }
            Self::Nmi => {
                apic.post_nmi();
            }
        }
    }
}

/// The highest requested vector that the priority lets through, from the registers alone.
fn deliverable(apic: &LocalApic) -> Option<u8> {
    let irr = apic.save().irr;
    let highest = (0..=255u8).rev().find(|&v| irr[usize::from(v >> 5)] >> (v & 31) & 1 != 0);
    highest.filter(|v| v >> 4 > apic.ppr() >> 4)
}

fn run(steps: &[(Owner, Option<(u32, Other)>)]) {
    let apic = Arc::new(LocalApic::new(0, true));
    for &(owner, other) in steps {
        if let Some((skip, other)) = other {
            let apic = apic.clone();
            at_point(skip, move || other.act(&apic));
        }
        match owner {
            Owner::Pending => {
                let _ = apic.pending();
            }
            Owner::Accept => {
                if let Some(vector) = apic.highest_pending() {
                    apic.accept(vector);
                }
            }
            Owner::Eoi => {
                write(&apic, reg::EOI, 0);
            }
            Owner::Tpr(value) => apic.set_tpr(value),
            Owner::Post(vector) => {
                apic.post(vector, Trigger::Edge);
            }
        }
        cancel();
        // Nobody is in the middle of anything: what can be taken must be announced.
        if deliverable(&apic).is_some() || apic.nmi_pending() || apic.extint_deliverable() {
            assert!(apic.attention(), "not announced after {owner:?} with {other:?}");
        }
        if apic.extint_deliverable() {
            assert_eq!(apic.pending(), Some(Pending::ExtInt));
        }
        assert_eq!(apic.highest_pending(), deliverable(&apic), "after {owner:?} with {other:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn nothing_is_lost_at_any_point(
        steps in proptest::collection::vec((owner(), proptest::option::of((0u32..4, other()))), 1..40)
    ) {
        run(&steps);
    }
}

/// A poster has set the IRR bit and not yet announced it when the owner, led there by another request, takes it; the announcement that
/// comes then finds nothing, and just when the owner has seen that, the next request arrives.
#[test]
fn a_stale_announcement_does_not_swallow_the_next_request() {
    for skip in 0..4 {
        let apic = Arc::new(xapic(0));
        let owner = apic.clone();
        at_point(0, move || {
            owner.post(0x42, Trigger::Edge);
            take(&owner, 0x42);
            write(&owner, reg::EOI, 0);
            assert_eq!(owner.pending(), Some(Pending::Lapic(0x41)));
            owner.accept(0x41);
            write(&owner, reg::EOI, 0);
        });
        assert_eq!(apic.post(0x41, Trigger::Edge), Posted::New);
        assert!(apic.attention(), "the late announcement");
        let other = apic.clone();
        at_point(skip, move || {
            other.post(0x51, Trigger::Edge);
        });
        let _ = apic.pending();
        assert!(!cancel(), "there are that many points");
        assert!(apic.attention(), "{skip}");
        take(&apic, 0x51);
    }
}

#[test]
fn init_leaves_no_request_unannounced() {
    for skip in 0..9 {
        let apic = Arc::new(xapic(0));
        post(&apic, 0x31);
        let other = apic.clone();
        at_point(skip, move || {
            for vector in [0x31u8, 0x81, 0xf1] {
                other.post(vector, Trigger::Edge);
            }
        });
        apic.init();
        cancel();
        write(&apic, reg::SVR, 0x1ff);
        let mut left: Vec<u8> = vec![];
        while let Some(vector) = apic.highest_pending() {
            apic.accept(vector);
            write(&apic, reg::EOI, 0);
            left.push(vector);
        }
        assert_eq!(apic.save().irr, [0; 8], "point {skip}: {left:x?} came");
    }
}

#[test]
fn an_expiry_that_two_cpus_notice_is_one_interrupt() {
    let apic = Arc::new(xapic(0));
    write(&apic, reg::LVT_TIMER, 0x40);
    write_at(&apic, Time(0), reg::TMICT, 500);
    let other = apic.clone();
    at_point(0, move || assert!(other.advance(Time(2_000))));
    assert!(!apic.advance(Time(2_000)));
    take(&apic, 0x40);
    write(&apic, reg::EOI, 0);
    assert_eq!(apic.pending(), None);
}

#[test]
fn noticing_an_expiry_does_not_undo_a_new_programming() {
    let apic = Arc::new(xapic(0));
    write(&apic, reg::TDCR, 0xb);
    write(&apic, reg::LVT_TIMER, 0x2_0040);
    write_at(&apic, Time(0), reg::TMICT, 500_000);
    let owner = apic.clone();
    at_point(0, move || {
        write_at(&owner, Time(500_000), reg::TMICT, 300_000);
    });
    apic.advance(Time(500_000));
    assert_eq!(apic.deadline(), Some(Time(800_000)));
}
