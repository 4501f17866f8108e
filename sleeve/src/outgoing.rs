//! The buffers of whoever carries frames to the underlay.

use kontena_schema::limits::OVERLAY_MTU;

use crate::bursts::Bursts;
use crate::headers::ETHERNET;
use crate::message::WIREGUARD_OVERHEAD;
use crate::udp::SendTimeout;
use crate::{virtio, vxlan};

/// The longest frame of the device, with its header.
const FRAME: usize = virtio::BYTES + 65_536 + ETHERNET;
/// The longest frame that leaves. A container can have the device cut what it sends into longer
/// ones, which the underlay would have to cut again.
pub(crate) const LONGEST: usize = ETHERNET + OVERLAY_MTU as usize;
/// Space for the longest packet, encrypted.
const ENCRYPTED: usize = vxlan::BYTES + LONGEST + WIREGUARD_OVERHEAD;

/// What is kept between two frames. Whoever has it carries frames, and nobody else does
/// meanwhile: they stay in their order.
pub(crate) struct Outgoing {
    /// What was read from the device.
    pub(crate) frame: Vec<u8>,
    /// The packet that is to be encrypted.
    pub(crate) packet: Vec<u8>,
    pub(crate) encrypted: Vec<u8>,
    pub(crate) bursts: Bursts,
    pub(crate) timeout: SendTimeout,
}

impl Outgoing {
    pub(crate) fn new() -> Self {
        Self {
            frame: vec![0; FRAME],
            packet: Vec::with_capacity(ENCRYPTED),
            encrypted: vec![0; ENCRYPTED],
            bursts: Bursts::default(),
            timeout: SendTimeout(0),
        }
    }
}
