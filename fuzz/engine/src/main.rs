//! The targets with libFuzzer behind them: one program for all, so that none can be
//! forgotten (`infra/bootstrap/fuzz`).
//!
//! libFuzzer has the command line; which target it is, the environment says:
//! `FUZZ_TARGET` names it, and `FUZZ_SEEDS` is a directory that its seeds are written
//! to. Without a target, the program prints the names and ends.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
mod engine;

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    eprintln!("this was built without a fuzzer: see `make fuzz`");
    std::process::ExitCode::FAILURE
}
