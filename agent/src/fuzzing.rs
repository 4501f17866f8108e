//! The properties of what the agent's name server reads from outside, for the fuzzer and for tests: `kontena-fuzz` says how they are run.
//!
//! It is compiled for this crate's tests and with `--cfg fuzzing`, and in no program
//! that is shipped. Each property stands beside its parser.

use kontena_fuzz::Target;

use crate::dns::fuzzing::{DNS, RESOLVERS};

/// One for each parser.
pub const TARGETS: &[Target] = &[DNS, RESOLVERS];

#[cfg(test)]
mod tests {
    use super::*;

    kontena_fuzz::replays! {
        TARGETS,
        dns: DNS => 20_000,
        resolvers: RESOLVERS => 20_000,
    }
}
