//! The properties of what the sleeve reads from outside, for the fuzzer and for
//! tests: `kontena-fuzz` says how they are run.
//!
//! It is compiled for this crate's tests and with `--cfg fuzzing`, and in no program
//! that is shipped: a feature would be one that another member could turn on.

pub(crate) mod cutting;
pub(crate) mod ends;
pub(crate) mod envelopes;
pub(crate) mod frames;
mod inbound;
mod outbound;

use kontena_fuzz::Target;

/// One for each parser, and one for the whole way each way.
pub const TARGETS: &[Target] = &[
    envelopes::VXLAN,
    envelopes::MESSAGE,
    cutting::CHECKSUM,
    cutting::VIRTIO,
    cutting::SEGMENT,
    cutting::COALESCE,
    inbound::INBOUND,
    outbound::OUTBOUND,
];

#[cfg(test)]
mod tests {
    use super::*;

    kontena_fuzz::replays! {
        TARGETS,
        vxlan: envelopes::VXLAN => 20_000,
        message: envelopes::MESSAGE => 20_000,
        checksum: cutting::CHECKSUM => 20_000,
        virtio: cutting::VIRTIO => 20_000,
        segment: cutting::SEGMENT => 20_000,
        coalesce: cutting::COALESCE => 10_000,
        inbound: inbound::INBOUND => 10_000,
        outbound: outbound::OUTBOUND => 3_000,
    }
}
