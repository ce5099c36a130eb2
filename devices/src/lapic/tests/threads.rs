//! Posting while the owner accepts: nothing is lost, nothing comes twice.

use super::*;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::{array, sync::Arc, thread, vec::Vec};

/// Each poster has its own vectors, and posts one again only after it has been served; so every post must be served exactly once.
#[test]
fn every_post_is_served_once() {
    const POSTERS: usize = 3;
    const ROUNDS: u32 = 20_000;
    let apic = Arc::new(x2apic(0));
    let served: Arc<[AtomicU32; 256]> = Arc::new(array::from_fn(|_| AtomicU32::new(0)));
    let posters: Vec<_> = (0..POSTERS)
        .map(|poster| {
            let (apic, served) = (apic.clone(), served.clone());
            thread::spawn(move || {
                // One low, one high, one sharing its IRR word with the other posters' vectors.
                let vectors = [0x31 + poster, 0xd5 + poster, 0x80 + poster];
                for round in 0..ROUNDS {
                    for vector in vectors {
                        while served[vector].load(SeqCst) != round {
                            thread::yield_now();
                        }
                        assert_eq!(apic.post(vector as u8, Trigger::Edge), Posted::New);
                    }
                }
            })
        })
        .collect();

    let total = POSTERS as u32 * 3 * ROUNDS;
    let mut count = 0;
    let mut state = 1u32;
    let mut depth = 0;
    while count < total || depth != 0 {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        if state.is_multiple_of(7) {
            // Raise and lower the priority, so that interrupts are held back and must come back by themselves.
            apic.set_tpr((state >> 8) as u8);
            let _ = apic.pending();
            apic.set_tpr(0);
        }
        // As the run loop does: no attention, no look.
        if apic.attention()
            && let Some(Pending::Lapic(vector)) = apic.pending()
        {
            apic.accept(vector);
            served[usize::from(vector)].fetch_add(1, SeqCst);
            count += 1;
            depth += 1;
        } else if depth == 0 {
            thread::yield_now();
        }
        if depth != 0 && !state.is_multiple_of(3) {
            apic.msr_write(NOW, 0x80b, 0).unwrap();
            depth -= 1;
        }
    }
    for poster in posters {
        poster.join().unwrap();
    }
    assert_eq!((count, apic.pending()), (total, None));
}

/// NMI, INIT and SIPI share the word with the requests.
#[test]
fn startup_messages_and_nmis_do_not_disturb_one_another() {
    let apic = Arc::new(xapic(1));
    let done = Arc::new(AtomicBool::new(false));
    let other = {
        let (apic, done) = (apic.clone(), done.clone());
        thread::spawn(move || {
            for page in 0..=255 {
                apic.post_init();
                apic.post_nmi();
                apic.post(0x50, Trigger::Edge);
                apic.post_sipi(page);
                while apic.startup_pending() || apic.nmi_pending() {
                    thread::yield_now();
                }
            }
            done.store(true, SeqCst);
        })
    };
    let (mut inits, mut sipis, mut nmis) = (0, Vec::new(), 0);
    loop {
        let last = done.load(SeqCst);
        match apic.take_startup() {
            Some(Startup::Init) => inits += 1,
            Some(Startup::Sipi(page)) => sipis.push(page),
            None => thread::yield_now(),
        }
        nmis += u32::from(apic.take_nmi());
        if let Some(vector) = apic.highest_pending() {
            apic.accept(vector);
            write(&apic, reg::EOI, 0);
        }
        if last {
            break;
        }
    }
    other.join().unwrap();
    assert_eq!((inits, nmis), (256, 256));
    assert_eq!(sipis, (0..=255).collect::<Vec<_>>());
}

/// A line that rises while its LVT entry is being unmasked is seen by one side or the other.
#[test]
fn extint_is_not_lost_between_line_and_unmasking() {
    for _ in 0..2_000 {
        let apic = Arc::new(xapic(0));
        let other = apic.clone();
        let line = thread::spawn(move || {
            other.set_lint0(true);
        });
        write(&apic, reg::LVT_LINT0, 0x700);
        let _ = apic.pending();
        line.join().unwrap();
        assert_eq!((apic.attention(), apic.pending()), (true, Some(Pending::ExtInt)));
    }
}

/// Two CPUs notice the same expiry: one interrupt.
#[test]
fn an_expiry_is_noticed_once() {
    let apic = Arc::new(xapic(0));
    write(&apic, reg::LVT_TIMER, 0x40);
    write(&apic, reg::TDCR, 0xb);
    for round in 0..2_000u64 {
        let now = Time(round * 1_000);
        write_at(&apic, now, reg::TMICT, 500);
        let other = apic.clone();
        let later = Time(now.0 + 600);
        let there = thread::spawn(move || other.advance(later));
        let here = apic.advance(later);
        assert!(here ^ there.join().unwrap());
        take(&apic, 0x40);
        write(&apic, reg::EOI, 0);
        assert_eq!(apic.pending(), None);
    }
}
