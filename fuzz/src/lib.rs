//! What the fuzzing of parsers is made of: targets, and a replay of them without a
//! fuzzer.
//!
//! A crate that parses what comes from outside has a module `fuzzing` with its
//! targets. It is there for the crate's own tests, which replay them, and under
//! `--cfg fuzzing`, with which `engine/` is built and libFuzzer drives them. So a
//! parser stays private, no feature can reach a program that is shipped, and what
//! the fuzzer checks is what the tests check.
//!
//! A target asserts a property and not only that nothing panics.
//!
//! Absent on purpose: files of seeds. Seeds are made by the project's own encoders,
//! so they change with the format.

mod input;
mod replay;

pub use input::Input;
pub use replay::replay;

/// A property of a parser that holds for all bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What it is called on the command line.
    pub name: &'static str,
    /// Panics if the property does not hold for these bytes.
    pub check: fn(&[u8]),
    /// What to begin with: bytes that get far, and those that once failed.
    pub seeds: fn() -> Vec<Vec<u8>>,
}
