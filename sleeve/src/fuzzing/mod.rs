//! Properties of the sleeve's parsers and of both of its directions, for the fuzzer and for
//! tests; `kontena-fuzz` runs them.
//!
//! Compiled only for this crate's tests and with `--cfg fuzzing`, and into no shipped
//! program: a cargo feature could be turned on by another workspace member.

pub(crate) mod encapsulations;
pub(crate) mod ends;
pub(crate) mod frames;
mod inbound;
mod outbound;
pub(crate) mod segmenting;

use kontena_fuzz::Target;

/// One for each parser, and one for each direction as a whole.
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
