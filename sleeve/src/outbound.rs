//! From the bridge to the underlay.

use std::io;
use std::sync::MutexGuard;

use boringtun::noise::TunnResult;
use kontena_schema::limits::OVERLAY_MTU;
use kontena_schema::mac::Mac;

use crate::counters::count;
use crate::headers::{ETHERNET, stays_on_its_host};
use crate::message::SEAL;
use crate::peer::Tunnel;
use crate::segment::segments;
use crate::sleeve::{Shared, retry_later};
use crate::snapshot::{Route, Snapshot};
use crate::udp::Burst;
use crate::virtio::{self, Header};
use crate::vxlan::{self, Encapsulation};

/// The longest frame of the device, with its header.
const FRAME: usize = virtio::BYTES + 65_536 + ETHERNET;
/// The longest frame that leaves. A container can have the device cut what it sends into longer
/// ones, which the underlay would have to cut again.
const LONGEST: usize = ETHERNET + OVERLAY_MTU as usize;
/// Room for the longest packet, and its encrypt.
const ENCRYPTED: usize = vxlan::BYTES + LONGEST + SEAL;
/// How long is waited for an underlay that takes nothing.
const PATIENCE_MS: u16 = 500;
/// How many frames are read before what they became is sent.
const FRAMES: usize = 64;

/// Carries frames until the sleeve stops.
pub(crate) fn run(shared: &Shared) {
    while shared.wait_readable(&shared.tap) {
        let carried = Work::begin(shared).carry_waiting(&shared.snapshot(), FRAMES);
        match carried {
            Ok(()) => {}
            Err(error) if gone(&error) => {
                tracing::error!(%error, "the sleeve's device is gone");
                return;
            }
            Err(_) => retry_later(),
        }
    }
}

/// Carries the first frame that waits: most likely the answer to what the bridge was given
/// a moment ago. The thread above is told of it, too, but sleeps: to wake it on another
/// processor takes longer than to carry a frame. An underlay that takes nothing is not
/// waited for, since who calls has packets to receive.
pub(crate) fn carry_answer(shared: &Shared, snapshot: &Snapshot) {
    if let Ok(mut kept) = shared.outgoing.try_lock() {
        kept.burst.patience_ms = 0;
        // An error is met again by the thread above, and told there.
        let _ = Work { shared, kept }.carry_waiting(snapshot, 1);
    }
}

/// The device was deleted.
fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV))
}

/// What is kept between two frames. Whoever has it carries frames, and nobody else does
/// meanwhile: they stay in their order.
pub(crate) struct Kept {
    /// What was read from the device.
    frame: Vec<u8>,
    /// The packet that is to be encrypted.
    packet: Vec<u8>,
    encrypted: Vec<u8>,
    burst: Burst,
}

impl Kept {
    pub(crate) fn new() -> Self {
        Self {
            frame: vec![0; FRAME],
            packet: Vec::with_capacity(ENCRYPTED),
            encrypted: vec![0; ENCRYPTED],
            burst: Burst::new(),
        }
    }
}

/// The way of frames to the underlay.
pub(crate) struct Work<'a> {
    shared: &'a Shared,
    kept: MutexGuard<'a, Kept>,
}

impl<'a> Work<'a> {
    pub(crate) fn begin(shared: &'a Shared) -> Self {
        let kept = shared.outgoing.lock();
        let mut kept = kept.unwrap_or_else(|poisoned| {
            // Of a thread that met a fault of ours in the middle of a frame.
            shared.outgoing.clear_poison();
            let mut kept = poisoned.into_inner();
            *kept = Kept::new();
            kept
        });
        kept.burst.patience_ms = PATIENCE_MS;
        Self { shared, kept }
    }
}

impl Work<'_> {
    /// Carries what waits in the device, up to so many frames.
    fn carry_waiting(&mut self, snapshot: &Snapshot, most: usize) -> io::Result<()> {
        let mut frame = std::mem::take(&mut self.kept.frame);
        let mut carried = Ok(());
        for _ in 0..most {
            match self.shared.tap.read(&mut frame) {
                Ok(length) => self.carry(snapshot, &mut frame[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    carried = Err(error);
                    break;
                }
            }
        }
        self.kept.frame = frame;
        self.flush();
        carried
    }

    /// Takes what was read from the device.
    pub(crate) fn carry(&mut self, snapshot: &Snapshot, read: &mut [u8]) {
        let drops = &self.shared.counters;
        let Some((header, _)) = Header::parse(read) else {
            return count(&drops.malformed_out);
        };
        let frame = &mut read[virtio::BYTES..];
        let Some(target) = frame.first_chunk::<6>().map(|octets| Mac(*octets)) else {
            return count(&drops.malformed_out);
        };
        if stays_on_its_host(frame) {
            return count(&drops.arp_out);
        }
        let routes = snapshot.targets(target);
        if routes.is_empty() {
            return count(&drops.unknown_target);
        }
        let cut = segments(header, frame, |head, payload| {
            for tunnel in routes.iter().filter_map(Route::tunnel) {
                self.encrypt(tunnel, head, payload);
            }
        });
        if cut.is_err() {
            count(&self.shared.counters.malformed_out);
        }
    }

    fn encrypt(&mut self, tunnel: &Tunnel, head: &[u8], payload: &[u8]) {
        let shared = self.shared;
        let bytes = head.len() + payload.len();
        let encapsulation = Encapsulation {
            from: shared.settings.tunnel_address,
            to: tunnel.tunnel_address,
            vni: shared.settings.vni,
        };
        let outer = encapsulation.head(head, bytes);
        let Some(outer) = outer.filter(|_| bytes <= LONGEST) else {
            return count(&shared.counters.malformed_out);
        };
        let Kept {
            packet,
            encrypted,
            burst,
            ..
        } = &mut *self.kept;
        packet.clear();
        packet.extend_from_slice(&outer);
        packet.extend_from_slice(head);
        packet.extend_from_slice(payload);
        let mut state = tunnel.lock();
        if !shared.admits(tunnel, &mut state) {
            return shared.not_sent(1);
        }
        // Without a session it keeps the packet and begins a handshake.
        let encrypted = state.tunn.encapsulate(packet, encrypted);
        let TunnResult::WriteToNetwork(encrypted) = encrypted else {
            return;
        };
        let endpoint = state.endpoint;
        drop(state);
        let lost = match endpoint {
            Some(endpoint) => burst.add(&shared.socket, endpoint, encrypted),
            None => 1,
        };
        shared.not_sent(lost);
    }

    /// Sends what waits for more of its kind.
    pub(crate) fn flush(&mut self) {
        let lost = self.kept.burst.flush(&self.shared.socket);
        self.shared.not_sent(lost);
    }
}
