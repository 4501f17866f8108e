//! The header before each frame of the TAP device: `struct virtio_net_hdr` (Virtual I/O
//! Device 1.2, section 5.1.6), in native byte order.

/// Its length in bytes.
pub(crate) const BYTES: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// The sender set ECN's congestion signal; only the first segment may carry it.
const GSO_ECN: u8 = 0x80;

/// A frame's metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    /// The offset where the checksum starts, and that of its field from there, if it is still to
    /// be computed.
    pub(crate) checksum: Option<(u16, u16)>,
    /// How to segment the frame, if it is longer than a packet.
    pub(crate) gso: Option<Gso>,
}

/// A frame that stands for several packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gso {
    /// The protocol to segment.
    pub(crate) kind: Kind,
    /// Payload bytes of each packet.
    pub(crate) size: u16,
}

/// The protocols that are segmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over either.
    Udp,
}

impl Header {
    /// Splits the header off. None if it is truncated, or of a kind that was not enabled.
    pub(crate) fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, frame) = bytes.split_first_chunk::<BYTES>()?;
        let [flags, gso_type, _, _, rest @ ..] = *head;
        let [s0, s1, c0, c1, o0, o1] = rest;
        let checksum = (flags & NEEDS_CHECKSUM != 0)
            .then(|| (u16::from_ne_bytes([c0, c1]), u16::from_ne_bytes([o0, o1])));
        let kind = match gso_type & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(Kind::TcpV4),
            GSO_TCPV6 => Some(Kind::TcpV6),
            GSO_UDP_L4 => Some(Kind::Udp),
            _ => return None,
        };
        let size = u16::from_ne_bytes([s0, s1]);
        let gso = kind.map(|kind| Gso { kind, size });
        Some((Self { checksum, gso }, frame))
    }

    /// The header of a frame whose headers end at `header_bytes`.
    pub(crate) fn format(self, header_bytes: u16) -> [u8; BYTES] {
        let (start, offset) = self.checksum.unwrap_or_default();
        let (kind, size) = match self.gso {
            None => (GSO_NONE, 0),
            Some(gso) => (gso.kind.number(), gso.size),
        };
        let flags = if self.checksum.is_some() {
            NEEDS_CHECKSUM
        } else {
            0
        };
        let [[h0, h1], [s0, s1], [c0, c1], [o0, o1]] =
            [header_bytes, size, start, offset].map(u16::to_ne_bytes);
        [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Kind::TcpV4 => GSO_TCPV4,
            Kind::TcpV6 => GSO_TCPV6,
            Kind::Udp => GSO_UDP_L4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        for kind in [None, Some(Kind::TcpV4), Some(Kind::TcpV6), Some(Kind::Udp)] {
            let gso = kind.map(|kind| Gso { kind, size: 1300 });
            let header = Header {
                checksum: Some((34, 16)),
                gso,
            };
            let bytes = header.format(66);
            assert_eq!(Header::parse(&bytes), Some((header, &[][..])));
        }
    }

    #[test]
    fn a_truncated_header_or_an_unknown_kind_is_rejected() {
        assert_eq!(Header::parse(&[0; BYTES - 1]), None);
        let mut fragments = Header::default().format(0);
        fragments[1] = 3;
        assert_eq!(Header::parse(&fragments), None);
    }
}
