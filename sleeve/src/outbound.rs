//! From the bridge to the underlay.

use std::io;
use std::sync::MutexGuard;

use boringtun::noise::TunnResult;
use kontena_schema::mac::Mac;

use crate::counters::count;
use crate::headers::stays_on_its_host;
use crate::outgoing::{LONGEST, Outgoing};
use crate::peer::Tunnel;
use crate::segment::segments;
use crate::shared::{Shared, retry_later};
use crate::snapshot::{Route, Snapshot};
use crate::udp::SendTimeout;
use crate::virtio::{self, Header};
use crate::vxlan::Encapsulation;

/// How long to wait for an underlay that accepts nothing.
const SEND_TIMEOUT: SendTimeout = SendTimeout(500);
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
        kept.timeout = SendTimeout(0);
        // An error is met again by the thread above, and told there.
        let _ = Work { shared, kept }.carry_waiting(snapshot, 1);
    }
}

/// The device was deleted.
fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV))
}

/// The way of frames to the underlay.
pub(crate) struct Work<'a> {
    shared: &'a Shared,
    kept: MutexGuard<'a, Outgoing>,
}

impl<'a> Work<'a> {
    pub(crate) fn begin(shared: &'a Shared) -> Self {
        let kept = shared.outgoing.lock();
        let mut kept = kept.unwrap_or_else(|poisoned| {
            // Of a thread that met a fault of ours in the middle of a frame.
            shared.outgoing.clear_poison();
            let mut kept = poisoned.into_inner();
            *kept = Outgoing::new();
            kept
        });
        kept.timeout = SEND_TIMEOUT;
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
        let Outgoing {
            packet,
            encrypted,
            bursts,
            timeout,
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
            Some(endpoint) => bursts.add(&shared.socket, endpoint, encrypted, timeout),
            None => 1,
        };
        shared.not_sent(lost);
    }

    /// Sends what waits.
    pub(crate) fn flush(&mut self) {
        let Outgoing {
            bursts, timeout, ..
        } = &mut *self.kept;
        let lost = bursts.flush(&self.shared.socket, timeout);
        self.shared.not_sent(lost);
    }
}
