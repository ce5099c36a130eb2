//! Fuzzing for stable Rust.
//!
//! A [`Target`] is a function that eats bytes and panics if something is wrong. [`driver::fuzz`] feeds it with its seeds, with what it has made
//! of them, and keeps what reaches code that nothing before has reached, if the program was built with coverage counters: `cargo xtask fuzz` does
//! that. Without them (`cargo test`) it makes inputs in the same way, but cannot tell which are good.
//!
//! To add a target: a file in `targets/`, and its name in [`TARGETS`]. Everything else, tests and command line, goes by that list.

pub mod coverage;
pub mod driver;
mod mutate;
mod random;
mod source;
mod targets;

pub use random::Random;
pub use source::Source;
pub use targets::TARGETS;

/// Something to be fuzzed.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    /// Panics if it finds something wrong. Must do the same each time.
    pub run: fn(&mut Source<'_>),
    /// Inputs that make sense.
    pub seeds: &'static [&'static [u8]],
    /// Pieces that make sense.
    pub words: &'static [&'static [u8]],
}

/// The target of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
