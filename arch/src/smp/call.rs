//! Having something done on other CPUs: mailboxes that are filled by one CPU at a time and emptied by their owner when it is interrupted.
//!
//! Nothing here can lock up by itself: only one CPU sends at a time, and a CPU that waits for its turn to send, or for answers, empties its
//! own mailbox meanwhile. But whoever calls must hold no lock that another CPU may be spinning on with interrupts disabled.

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use spin::Mutex;

/// What is to be done, and how many CPUs have not done it yet.
#[derive(Debug)]
struct Request {
    /// A reference whose lifetime has been forgotten: it is alive until `left` is zero.
    run: *const (dyn Fn() + Sync + 'static),
    left: AtomicUsize,
}

/// One CPU's mailbox: the request that it has to serve, if any.
#[derive(Debug)]
pub struct Mailbox(AtomicPtr<Request>);

impl Mailbox {
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicPtr::new(null_mut()))
    }

    /// Serves what is in it. On the CPU that it belongs to. False if it was empty.
    pub fn serve(&self) -> bool {
        let request = self.0.swap(null_mut(), Ordering::Acquire);
        // SAFETY: the sender keeps the request and what it refers to alive until `left` is zero, and this CPU has not counted down yet.
        let Some(request) = (unsafe { request.as_ref() }) else { return false };
        // SAFETY: as above.
        unsafe { (*request.run)() };
        // From here on, the request may be gone.
        request.left.fetch_sub(1, Ordering::Release);
        true
    }
}

impl Default for Mailbox {
    fn default() -> Self {
        Self::new()
    }
}

/// Whose turn it is to send.
#[derive(Debug)]
pub struct Turn(Mutex<()>);

impl Turn {
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(()))
    }

    /// Has `run` called once on each CPU of `targets`, which must differ and not be `own`, the caller's mailbox. `notify` makes the CPU at that
    /// place in `targets` look into its mailbox; it is called after the mailbox has been filled. `meanwhile` runs here at the same time. Returns
    /// when all are done.
    ///
    /// `run` must not send anything itself.
    pub fn call<'a, R>(
        &self,
        own: &Mailbox,
        targets: impl Iterator<Item = &'a Mailbox> + Clone,
        notify: impl Fn(usize),
        run: &(dyn Fn() + Sync),
        meanwhile: impl FnOnce() -> R,
    ) -> R {
        let turn = loop {
            if let Some(turn) = self.0.try_lock() {
                break turn;
            }
            own.serve();
            core::hint::spin_loop();
        };
        let run: *const (dyn Fn() + Sync + '_) = run;
        // SAFETY: only the lifetime changes; `run` is not used after this function has returned, as it waits for all answers.
        let run = unsafe { core::mem::transmute::<*const (dyn Fn() + Sync + '_), *const (dyn Fn() + Sync + 'static)>(run) };
        let request = Request { run, left: AtomicUsize::new(targets.clone().count()) };
        for (index, mailbox) in targets.enumerate() {
            let before = mailbox.0.swap((&raw const request).cast_mut(), Ordering::Release);
            debug_assert!(before.is_null(), "a mailbox was not empty");
            notify(index);
        }
        let result = meanwhile();
        while request.left.load(Ordering::Acquire) != 0 {
            core::hint::spin_loop();
        }
        drop(turn);
        result
    }
}

impl Default for Turn {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU32};
    use std::{thread, vec::Vec};

    const CPUS: usize = 3;
    const CALLS: u32 = 20;

    /// Each CPU has all others do something, again and again, while the others do the same: everything is done, exactly once on each, before
    /// the call returns, and nobody waits for ever.
    #[test]
    fn cpus_that_call_each_other_all_get_through() {
        let mailboxes: [Mailbox; CPUS] = core::array::from_fn(|_| Mailbox::new());
        let turn = Turn::new();
        let served: [AtomicU32; CPUS] = core::array::from_fn(|_| AtomicU32::new(0));
        let running = AtomicU32::new(CPUS as u32);
        thread::scope(|scope| {
            for me in 0..CPUS {
                let (mailboxes, turn, served, running) = (&mailboxes, &turn, &served, &running);
                scope.spawn(move || {
                    let others: Vec<usize> = (0..CPUS).filter(|&n| n != me).collect();
                    for _ in 0..CALLS {
                        let done = AtomicU32::new(0);
                        let run = || {
                            done.fetch_add(1, Ordering::Relaxed);
                        };
                        let targets = others.iter().map(|&n| &mailboxes[n]);
                        let notified = AtomicU32::new(0);
                        let notify = |_| {
                            notified.fetch_add(1, Ordering::Relaxed);
                        };
                        let there = turn.call(&mailboxes[me], targets, notify, &run, || 7);
                        assert_eq!(there, 7);
                        assert_eq!(done.load(Ordering::Relaxed), CPUS as u32 - 1);
                        assert_eq!(notified.load(Ordering::Relaxed), CPUS as u32 - 1);
                        // Between calls a CPU is interrupted.
                        if mailboxes[me].serve() {
                            served[me].fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    running.fetch_sub(1, Ordering::Relaxed);
                    while running.load(Ordering::Relaxed) != 0 {
                        mailboxes[me].serve();
                        thread::yield_now();
                    }
                });
            }
        });
        assert!(mailboxes.iter().all(|m| !m.serve()), "nothing is left over");
    }

    #[test]
    fn the_caller_works_while_the_others_do() {
        let (own, other, turn) = (Mailbox::new(), Mailbox::new(), Turn::new());
        let there = AtomicBool::new(false);
        let here = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !other.serve() {
                    thread::yield_now();
                }
            });
            // Each waits for the other: one after the other would never end.
            let run = || {
                there.store(true, Ordering::Relaxed);
                while !here.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
            };
            turn.call(
                &own,
                [&other].into_iter(),
                |_| {},
                &run,
                || {
                    while !there.load(Ordering::Relaxed) {
                        thread::yield_now();
                    }
                    here.store(true, Ordering::Relaxed);
                },
            );
        });
    }

    #[test]
    fn nobody_to_call_is_no_reason_to_wait() {
        Turn::new().call(&Mailbox::new(), core::iter::empty(), |_| unreachable!(), &|| unreachable!(), || {});
    }
}
