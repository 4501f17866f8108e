//! The properties of what the agent's data plane and its name server read from
//! outside, for the fuzzer and for tests: `kontena-fuzz` says how they are run.
//!
//! It is compiled for this crate's tests and with `--cfg fuzzing`, and in no program
//! that is shipped. Each property stands beside its parser.

use kontena_fuzz::Target;

use crate::dns::fuzzing::{ANSWERS, DNS, RESOLVERS};
use crate::overlay::fuzzing::{NETLINK, PROBE, UAPI};

/// One for each parser.
pub const TARGETS: &[Target] = &[PROBE, NETLINK, UAPI, DNS, ANSWERS, RESOLVERS];

#[cfg(test)]
mod tests {
    use super::*;

    kontena_fuzz::replays! {
        TARGETS,
        probe: PROBE => 20_000,
        netlink: NETLINK => 20_000,
        uapi: UAPI => 20_000,
        dns: DNS => 20_000,
        answers: ANSWERS => 20_000,
        resolvers: RESOLVERS => 20_000,
    }
}
