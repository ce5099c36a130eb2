//! Marks the places between two atomic steps where another CPU may come in. Tests let one come in there; otherwise nothing is there.

/// Another CPU may do something now.
#[cfg(not(test))]
#[inline(always)]
pub(super) fn point() {}

#[cfg(test)]
pub(super) use testing::point;

#[cfg(test)]
pub(super) mod testing {
    use std::{boxed::Box, cell::RefCell};

    type Action = Box<dyn FnOnce()>;

    std::thread_local! {
        /// How many more points this thread passes before the action happens.
        static NEXT: RefCell<Option<(u32, Action)>> = const { RefCell::new(None) };
    }

    pub fn point() {
        let due = NEXT.with_borrow_mut(|next| match next {
            Some((0, _)) => next.take(),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        });
        if let Some((_, action)) = due {
            action();
        }
    }

    /// Lets `action` happen at the point after the next `skip` ones that this thread passes.
    pub fn at_point(skip: u32, action: impl FnOnce() + 'static) {
        NEXT.set(Some((skip, Box::new(action))));
    }

    /// Forgets the action; true if it has not happened.
    pub fn cancel() -> bool {
        NEXT.take().is_some()
    }
}
