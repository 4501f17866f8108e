//! The `kontena` command: parses, calls the library, prints.
//!
//! Standard output carries what was asked for and nothing else, so that it can be
//! read by a program; progress on a terminal, warnings and errors go to standard
//! error. A command that failed exits with 1, one that was not understood with 2.

mod args;
mod commands;
mod failure;
mod output;
mod session;

use std::process::ExitCode;

use clap::Parser;
use session::{Environment, Session};

use crate::args::Args;
use crate::failure::Failure;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", failure.shown());
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<(), Failure> {
    // A command makes one call after another: one thread serves it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let session = Session::new(
        args.global,
        Environment::read(|name| std::env::var(name).ok()),
    )?;
    runtime.block_on(commands::run(args.command, &session))
}
