//! How agents of peers are spoken to: heartbeats through what encrypts, path_probes in clear.

use std::time::{Duration, Instant};

use kontena_sleeve::PeerStatus;

use crate::peer::encryption::EncryptedPath;
use crate::peer::heartbeat::Heartbeat;
use crate::peer::machine::{Peer, Tunnel};
use crate::peer::path_probe_socket::PathProbeSocket;

/// The transports to peers.
pub(crate) struct Transports {
    pub(crate) encrypted: Option<EncryptedPath>,
    pub(crate) path_probes: Option<PathProbeSocket>,
    /// Tells the runs of this agent apart.
    pub(crate) run: u32,
}

impl Transports {
    /// Looks at a peer, and sends the heartbeat that is due.
    pub(crate) fn settle(
        &self,
        peer: &mut Peer,
        status: Option<PeerStatus>,
        every: Duration,
        now: Instant,
    ) {
        let tunnel = status.map(|status| Tunnel {
            key: Some(status.key),
            heard_at: status.proven,
            alive: status.is_alive(),
        });
        peer.look(tunnel.unwrap_or_default(), now);
        if let Some(heartbeat) = peer.heartbeat(self.run, every, now) {
            self.send(peer, &heartbeat, now);
        }
    }

    /// Sends a heartbeat, and the path_probe that goes with it.
    fn send(&self, peer: &mut Peer, heartbeat: &Heartbeat, now: Instant) {
        let Some(encrypted) = &self.encrypted else {
            return;
        };
        if !encrypted.send(peer.tunnel_address(), &heartbeat.write()) {
            return;
        }
        peer.sent(heartbeat, now);
        if let (Some(path_probes), Some((to, path_probe))) =
            (&self.path_probes, peer.path_probe(heartbeat, now))
        {
            path_probes.send(to, peer.mac(), path_probe);
        }
    }
}
