//! The properties of what the sleeve reads from outside, for the fuzzer and for
//! tests: `kontena-fuzz` says how they are run.
//!
//! It is compiled for this crate's tests and with `--cfg fuzzing`, and in no program
//! that is shipped: a feature would be one that another member could turn on.

pub(crate) mod encapsulations;
pub(crate) mod ends;
pub(crate) mod frames;
mod inbound;
mod outbound;
pub(crate) mod segmenting;

use kontena_fuzz::Target;

/// One for each parser, and one for the whole way each way.
pub const TARGETS: &[Target] = &[
    encapsulations::VXLAN,
    encapsulations::MESSAGE,
    segmenting::CHECKSUM,
    segmenting::VIRTIO,
    segmenting::SEGMENT,
    segmenting::COALESCE,
    inbound::INBOUND,
    outbound::OUTBOUND,
];

#[cfg(test)]
mod tests {
    use super::*;

    kontena_fuzz::replays! {
        TARGETS,
        vxlan: encapsulations::VXLAN => 20_000,
        message: encapsulations::MESSAGE => 20_000,
        checksum: segmenting::CHECKSUM => 20_000,
        virtio: segmenting::VIRTIO => 20_000,
        segment: segmenting::SEGMENT => 20_000,
        coalesce: segmenting::COALESCE => 10_000,
        inbound: inbound::INBOUND => 10_000,
        outbound: outbound::OUTBOUND => 3_000,
    }
}
