//! The hand-over from whoever posts to the owner, in every order in which the CPUs' steps can follow one another, and with every value that
//! the orderings in the code allow a load to see. `cargo xtask test --filter model`; see `docs/testing.md`.
//!
//! What is not here is a level at LINT0 against its unmasking: it needs sequentially consistent loads, which loom does not know.

use super::*;
use crate::{
    interrupt::{CpuSet, InterruptMessage},
    router::InterruptRouter,
};
use alloc::{vec, vec::Vec};
use loom::{
    sync::{Condvar, Mutex},
    thread,
};
use x86defs::{Time, Width};

const NOW: Time = Time(1000);
/// Most switches away from a CPU that could go on.
const PREEMPTIONS: usize = 3;
/// For what has many steps.
const FEWER: usize = 2;

fn check(preemptions: usize, body: impl Fn() + Copy + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    // A thread may have a larger stack than the model's first one.
    builder.check(move || thread::Builder::new().stack_size(0x8000).spawn(body).unwrap().join().unwrap());
}

fn write(apic: &LocalApic, register: u32, value: u32) {
    apic.mmio_write(NOW, register.into(), Width::Dword, value.into());
}

fn apic() -> Arc<LocalApic> {
    let apic = LocalApic::new(0, false);
    write(&apic, reg::SVR, 0x1ff);
    Arc::new(apic)
}

fn eoi(apic: &LocalApic) {
    write(apic, reg::EOI, 0);
}

/// Takes what the run loop would inject, and serves it at once.
fn serve(apic: &LocalApic) -> Option<u8> {
    // No attention, no look.
    if !apic.attention() {
        return None;
    }
    match apic.pending()? {
        Pending::Lapic(vector) => {
            apic.accept(vector);
            eoi(apic);
            Some(vector)
        }
        Pending::ExtInt => None,
    }
}

fn drain(apic: &LocalApic) -> Vec<u8> {
    core::iter::from_fn(|| serve(apic)).collect()
}

/// What the scheduler's lock is to a vCPU that sleeps.
#[derive(Default)]
struct Bed {
    asleep: Mutex<bool>,
    woken: Condvar,
}

impl Bed {
    /// The last look, and sleep until somebody wakes it.
    fn sleep(&self, apic: &LocalApic) {
        let mut asleep = self.asleep.lock().unwrap();
        if apic.attention() && (apic.nmi_pending() || apic.startup_pending() || apic.pending().is_some()) {
            return;
        }
        *asleep = true;
        while *asleep {
            asleep = self.woken.wait(asleep).unwrap();
        }
    }

    fn wake(&self) {
        let mut asleep = self.asleep.lock().unwrap();
        if core::mem::replace(&mut *asleep, false) {
            self.woken.notify_one();
        }
    }
}

/// Runs and sleeps until `count` interrupts have been served.
fn live(apic: &LocalApic, bed: &Bed, count: usize) -> Vec<u8> {
    let mut served = Vec::new();
    while served.len() < count {
        match serve(apic) {
            Some(vector) => served.push(vector),
            None => bed.sleep(apic),
        }
    }
    served
}

fn sorted(mut vectors: Vec<u8>) -> Vec<u8> {
    vectors.sort_unstable();
    vectors
}

/// Two posters, of one IRR word or of two, and an owner that sleeps whenever it finds nothing.
fn two_posters(first: u8, second: u8) {
    check(PREEMPTIONS, move || {
        let (apic, bed) = (apic(), Arc::new(Bed::default()));
        for vector in [first, second] {
            let (apic, bed) = (apic.clone(), bed.clone());
            thread::spawn(move || {
                assert_eq!(apic.post(vector, Trigger::Edge), Posted::New);
                bed.wake();
            });
        }
        assert_eq!(sorted(live(&apic, &bed, 2)), sorted(vec![first, second]));
        assert_eq!(apic.save().irr, [0; 8]);
    });
}

#[test]
fn model_two_requests_in_one_word_wake_the_owner() {
    two_posters(0x41, 0x45);
}

#[test]
fn model_two_requests_in_two_words_wake_the_owner() {
    two_posters(0x31, 0xd1);
}

/// A poster has set its bit and not yet announced it when the owner, led there by another request of that word, takes it; the announcement that
/// comes then finds nothing, and just when the owner has seen that, the next request arrives.
#[test]
fn model_a_stale_announcement_does_not_swallow_the_next_request() {
    check(PREEMPTIONS, || {
        let (apic, bed) = (apic(), Arc::new(Bed::default()));
        for vectors in [&[0x41][..], &[0x45, 0x46]] {
            let (apic, bed) = (apic.clone(), bed.clone());
            thread::spawn(move || {
                for &vector in vectors {
                    assert_eq!(apic.post(vector, Trigger::Edge), Posted::New);
                    bed.wake();
                }
            });
        }
        assert_eq!(sorted(live(&apic, &bed, 3)), [0x41, 0x45, 0x46]);
    });
}

/// As many interrupts are served as were new, whatever becomes of those that come while one is pending.
#[test]
fn model_a_request_is_served_once_however_often_it_is_merged() {
    check(PREEMPTIONS, || {
        let apic = apic();
        let posters = [(); 2].map(|()| {
            let apic = apic.clone();
            thread::spawn(move || apic.post(0x41, Trigger::Edge) == Posted::New)
        });
        let mut served = drain(&apic).len();
        let new = posters.into_iter().map(|poster| usize::from(poster.join().unwrap())).sum::<usize>();
        served += drain(&apic).len();
        assert_eq!(served, new);
        assert!((1..=2).contains(&new));
        assert_eq!(apic.save().irr, [0; 8]);
    });
}

/// The page is lent to the CPU: whatever is requested while the owner hands over gets there, then or with the next hand-over, and nobody who asks
/// meanwhile finds it gone.
#[test]
fn model_what_is_requested_during_a_hand_over_is_not_lost() {
    check(PREEMPTIONS, || {
        let apic = apic();
        apic.lend_page();
        let poster = {
            let apic = apic.clone();
            thread::spawn(move || {
                apic.post(0x41, Trigger::Edge);
                assert!(apic.is_requested(0x41));
                apic.post(0x45, Trigger::Edge);
            })
        };
        let first = apic.hand_over();
        poster.join().unwrap();
        // The announcement may come after what it announces was handed over.
        assert!(apic.attention() || first == 0x45, "there is something to hand over");
        if apic.attention() {
            assert_eq!(apic.hand_over(), 0x45);
        }
        apic.take_page_back();
        assert_eq!(sorted(drain(&apic)), [0x41, 0x45]);
    });
}

/// The owner holds interrupts back by its priority, and lets them through again.
#[test]
fn model_a_request_outlives_a_raised_priority() {
    check(PREEMPTIONS, || {
        let apic = apic();
        let poster = {
            let apic = apic.clone();
            thread::spawn(move || {
                apic.post(0x41, Trigger::Edge);
                apic.post(0x35, Trigger::Edge);
            })
        };
        apic.set_tpr(0x40);
        assert_eq!(apic.pending(), None);
        apic.set_tpr(0x30);
        let mut served = drain(&apic);
        apic.set_tpr(0);
        served.extend(drain(&apic));
        poster.join().unwrap();
        served.extend(drain(&apic));
        assert_eq!(sorted(served), [0x35, 0x41]);
    });
}

/// One is in service while others of a higher and a lower class come; the end of each lets the next one through.
#[test]
fn model_a_request_under_service_waits_for_its_end() {
    check(PREEMPTIONS, || {
        let apic = apic();
        apic.post(0x51, Trigger::Edge);
        let poster = {
            let apic = apic.clone();
            thread::spawn(move || {
                apic.post(0x41, Trigger::Edge);
                apic.post(0x61, Trigger::Edge);
            })
        };
        let Some(Pending::Lapic(vector)) = apic.pending() else { panic!("lost") };
        apic.accept(vector);
        let mut served = vec![vector];
        if let Some(Pending::Lapic(vector)) = apic.pending() {
            assert_eq!(vector, 0x61, "the others are of no higher class than what is in service");
            apic.accept(vector);
            served.push(vector);
            eoi(&apic);
        }
        eoi(&apic);
        poster.join().unwrap();
        served.extend(drain(&apic));
        assert_eq!(sorted(served), [0x41, 0x51, 0x61]);
    });
}

/// A processor that is started: INIT, SIPI and NMI share the word with the requests.
#[test]
fn model_start_up_messages_and_nmis_wake_the_owner() {
    check(FEWER, || {
        let (apic, bed) = (apic(), Arc::new(Bed::default()));
        let starter = {
            let (apic, bed) = (apic.clone(), bed.clone());
            thread::spawn(move || {
                apic.post_init();
                bed.wake();
                apic.post_sipi(0x9a);
                bed.wake();
            })
        };
        let other = {
            let (apic, bed) = (apic.clone(), bed.clone());
            thread::spawn(move || {
                apic.post_nmi();
                bed.wake();
            })
        };
        let (mut started, mut nmi) = (false, false);
        while !(started && nmi) {
            match apic.take_startup() {
                Some(Startup::Init) => assert!(!started),
                Some(Startup::Sipi(page)) => {
                    assert_eq!(page, 0x9a);
                    started = true;
                }
                None if apic.take_nmi() => nmi = true,
                None => bed.sleep(&apic),
            }
        }
        starter.join().unwrap();
        other.join().unwrap();
        assert!(!apic.signal_pending());
        assert_eq!(apic.pending(), None);
    });
}

/// What is posted during an INIT is either gone or announced.
#[test]
fn model_init_leaves_no_request_unannounced() {
    check(PREEMPTIONS, || {
        let apic = apic();
        apic.post(0x31, Trigger::Edge);
        let poster = {
            let apic = apic.clone();
            thread::spawn(move || {
                apic.post(0x31, Trigger::Edge);
                apic.post(0xf1, Trigger::Edge);
            })
        };
        apic.init();
        write(&apic, reg::SVR, 0x1ff);
        poster.join().unwrap();
        drain(&apic);
        assert_eq!(apic.save().irr, [0; 8]);
    });
}

/// Any CPU may notice that the timer has expired; one of them does.
#[test]
fn model_an_expiry_is_one_interrupt_whoever_notices_it() {
    check(PREEMPTIONS, || {
        let apic = apic();
        write(&apic, reg::LVT_TIMER, 0x40);
        apic.mmio_write(Time(0), reg::TMICT.into(), Width::Dword, 500);
        let others = [(); 2].map(|()| {
            let apic = apic.clone();
            thread::spawn(move || apic.advance(Time(2_000)))
        });
        let served = drain(&apic).len();
        let noticed = others.map(|other| other.join().unwrap()).into_iter().filter(|&noticed| noticed).count();
        assert_eq!(noticed, 1);
        assert_eq!(served + drain(&apic).len(), 1);
    });
}

#[test]
fn model_noticing_an_expiry_does_not_undo_a_new_programming() {
    check(PREEMPTIONS, || {
        let apic = apic();
        write(&apic, reg::TDCR, 0xb);
        write(&apic, reg::LVT_TIMER, 0x2_0040);
        apic.mmio_write(Time(0), reg::TMICT.into(), Width::Dword, 500_000);
        let other = {
            let apic = apic.clone();
            thread::spawn(move || apic.advance(Time(500_000)))
        };
        apic.mmio_write(Time(500_000), reg::TMICT.into(), Width::Dword, 300_000);
        other.join().unwrap();
        assert_eq!(apic.deadline(), Some(Time(800_000)));
    });
}

/// IPIs of two CPUs to a third: each takes from the router whom to wake, and may get what the other has noted.
#[test]
fn model_an_ipi_wakes_its_target_whoever_takes_the_note() {
    check(FEWER, || {
        let apics: Vec<_> = (0..3).map(|id| Arc::new(LocalApic::new(id, id == 0))).collect();
        write(&apics[0], reg::SVR, 0x1ff);
        let (router, bed) = (Arc::new(InterruptRouter::new(apics)), Arc::new(Bed::default()));
        for (sender, vector) in [(1, 0x41), (2, 0x45)] {
            let (router, bed) = (router.clone(), bed.clone());
            thread::spawn(move || {
                let message = InterruptMessage {
                    destination: 0,
                    destination_mode: DestinationMode::Physical,
                    delivery: DeliveryMode::Fixed,
                    vector,
                    trigger: Trigger::Edge,
                };
                router.send_ipi(sender, Ipi { shorthand: Shorthand::None, message });
                let woken = router.take_woken();
                assert!(woken.is_empty() || woken == CpuSet::single(0));
                if !woken.is_empty() {
                    bed.wake();
                }
            });
        }
        assert_eq!(sorted(live(&router.apics()[0], &bed, 2)), [0x41, 0x45]);
    });
}
