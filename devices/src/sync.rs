//! The atomics and locks of everything that a model checker looks at: the machine's own, or with `--cfg loom` loom's, which try all orders
//! in which CPUs can get at them.

#[cfg(loom)]
pub use self::model::Mutex;
#[cfg(loom)]
pub use loom::sync::atomic;
#[cfg(not(loom))]
pub use {core::sync::atomic, spin::Mutex};

#[cfg(loom)]
mod model {
    use loom::sync::{self, MutexGuard};

    /// Loom's lock as if it were spin's, which knows no poison.
    pub struct Mutex<T>(sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Self(sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            match self.0.lock() {
                Ok(guard) => guard,
                Err(poisoned) => poisoned.into_inner(),
            }
        }
    }
}
