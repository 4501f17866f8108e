//! What is to be sent to the underlay, gathered by receiver.
//!
//! A frame for all is encrypted once for each peer, one after the other. Sent at each change
//! of the receiver, 64 of them in a full grid would be 16,192 calls; gathered they are a few
//! hundred.
//!
//! Invariants: what goes to one receiver stays in its order; never more than
//! [`PACKETS_MAX`] packets wait.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::udp::{Burst, SendTimeout, Socket};

/// The most packets that wait, of all receivers together: 1.5 MB of the longest.
const PACKETS_MAX: usize = 1024;
/// Buffers that are kept for the next packets.
const SPARE_MAX: usize = 4;

/// Bursts for several receivers.
#[derive(Default)]
pub(crate) struct Bursts {
    waiting: Vec<(SocketAddr, Burst)>,
    /// Where in `waiting` a receiver is.
    places: HashMap<SocketAddr, usize>,
    /// Where the last packet went: most likely the next one goes there, too.
    last: usize,
    /// How many packets wait.
    packets: usize,
    spare: Vec<Burst>,
}

impl Bursts {
    /// Adds a packet, and sends what it leaves no room for. Returns how many packets could
    /// not be sent.
    pub(crate) fn add(
        &mut self,
        socket: &Socket,
        to: SocketAddr,
        packet: &[u8],
        timeout: &mut SendTimeout,
    ) -> u64 {
        self.last = self.place(to);
        let (_, burst) = &mut self.waiting[self.last];
        let mut lost = 0;
        if !burst.takes(packet) {
            self.packets -= burst.len();
            lost += burst.send(socket, to, timeout);
        }
        burst.add(packet);
        self.packets += 1;
        if self.packets >= PACKETS_MAX {
            lost += self.flush(socket, timeout);
        }
        lost
    }

    fn place(&mut self, to: SocketAddr) -> usize {
        if self
            .waiting
            .get(self.last)
            .is_some_and(|(last, _)| *last == to)
        {
            return self.last;
        }
        *self.places.entry(to).or_insert_with(|| {
            let burst = self.spare.pop().unwrap_or_default();
            self.waiting.push((to, burst));
            self.waiting.len() - 1
        })
    }

    /// Sends all that waits. Returns how many packets could not be sent.
    pub(crate) fn flush(&mut self, socket: &Socket, timeout: &mut SendTimeout) -> u64 {
        let mut lost = 0;
        for (to, mut burst) in self.waiting.drain(..) {
            lost += burst.send(socket, to, timeout);
            if self.spare.len() < SPARE_MAX {
                self.spare.push(burst);
            }
        }
        self.places.clear();
        self.packets = 0;
        lost
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const WAIT: SendTimeout = SendTimeout(500);

    /// A socket that receives, and its address.
    fn receiver() -> (Socket, SocketAddr) {
        let socket = Socket::bind(0).unwrap();
        let to = (Ipv4Addr::LOCALHOST, socket.port().unwrap()).into();
        (socket, to)
    }

    /// The bursts that have arrived, each as its packets.
    fn received(socket: &Socket) -> Vec<Vec<Vec<u8>>> {
        let mut buffer = vec![0; 65_536];
        let burst = || {
            let (length, size, _) = socket.receive(&mut buffer).ok()?;
            Some(buffer[..length].chunks(size).map(<[u8]>::to_vec).collect())
        };
        std::iter::from_fn(burst).collect()
    }

    #[test]
    fn frames_for_all_are_one_burst_for_each() {
        let socket = Socket::bind(0).unwrap();
        let receivers = [receiver(), receiver(), receiver()];
        let (mut bursts, mut wait) = (Bursts::default(), WAIT);
        for number in 0..64 {
            for (_, to) in &receivers {
                assert_eq!(bursts.add(&socket, *to, &[number; 100], &mut wait), 0);
            }
        }
        assert_eq!(bursts.flush(&socket, &mut wait), 0);
        let all: Vec<_> = (0..64).map(|number| vec![number; 100]).collect();
        for (receiver, _) in &receivers {
            assert_eq!(received(receiver), std::slice::from_ref(&all));
        }
    }

    #[test]
    fn what_goes_to_one_receiver_stays_in_its_order_whatever_its_size() {
        let socket = Socket::bind(0).unwrap();
        let (one, other) = (receiver(), receiver());
        let (mut bursts, mut wait) = (Bursts::default(), WAIT);
        let packets: Vec<_> = (0..200_u8)
            .map(|number| vec![number; 20 + usize::from(number) * 7 % 100])
            .collect();
        for packet in &packets {
            bursts.add(&socket, one.1, packet, &mut wait);
            bursts.add(&socket, other.1, packet, &mut wait);
        }
        bursts.flush(&socket, &mut wait);
        for (receiver, _) in [one, other] {
            assert_eq!(received(&receiver).concat(), packets);
        }
    }

    #[test]
    fn no_more_than_a_bound_waits() {
        let socket = Socket::bind(0).unwrap();
        // More than two bursts can take, and each is half full.
        let receivers: Vec<_> = (0..40).map(|_| receiver()).collect();
        let (mut bursts, mut wait) = (Bursts::default(), WAIT);
        for _ in 0..32 {
            for (_, to) in &receivers {
                bursts.add(&socket, *to, &[0; 100], &mut wait);
                assert!(bursts.packets < PACKETS_MAX);
            }
        }
        bursts.flush(&socket, &mut wait);
        assert!(bursts.spare.len() <= SPARE_MAX && bursts.waiting.is_empty());
        for (receiver, _) in &receivers {
            assert_eq!(received(receiver).concat().len(), 32);
        }
    }
}
