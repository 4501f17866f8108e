//! Counts messages as their bytes go by.
//!
//! It sees one direction of one connection: the head of HTTP's upgrade, then frames of
//! a WebSocket (RFC 6455 section 5.2). Pings, pongs and closes are no messages.

/// The end of HTTP's head.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// One direction of a connection.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    at: At,
    /// What is there of a frame's header.
    header: Vec<u8>,
    /// How many messages began.
    pub(crate) messages: u64,
}

#[derive(Debug)]
enum At {
    /// In the head, so many bytes of whose end were there.
    Head(usize),
    /// In a frame's header.
    Header,
    /// In what a frame holds; so much of it is to come.
    Payload(u64),
}

impl Default for At {
    fn default() -> Self {
        Self::Head(0)
    }
}

impl Frames {
    /// Takes the next bytes.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) {
        while let Some((&first, rest)) = bytes.split_first() {
            match self.at {
                At::Head(matched) => {
                    bytes = rest;
                    let matched = match first {
                        byte if byte == HEAD_END[matched] => matched + 1,
                        b'\r' => 1,
                        _ => 0,
                    };
                    self.at = if matched == HEAD_END.len() {
                        At::Header
                    } else {
                        At::Head(matched)
                    };
                }
                At::Header => {
                    bytes = rest;
                    self.header.push(first);
                    self.header_grew();
                }
                At::Payload(left) => {
                    let here = left.min(bytes.len() as u64);
                    bytes = &bytes[here as usize..];
                    self.at = after(left - here);
                }
            }
        }
    }

    fn header_grew(&mut self) {
        let Some(payload) = payload(&self.header) else {
            return;
        };
        let opcode = self.header[0] & 15;
        // Text and binary; what continues one is no other.
        self.messages += u64::from(opcode == 1 || opcode == 2);
        self.header.clear();
        self.at = after(payload);
    }
}

fn after(left: u64) -> At {
    match left {
        0 => At::Header,
        left => At::Payload(left),
    }
}

/// How much a frame holds, if its header is whole.
fn payload(header: &[u8]) -> Option<u64> {
    let short = header.get(1)? & 0x7f;
    let large_topology = match short {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask = if header[1] & 0x80 == 0 { 0 } else { 4 };
    if header.len() < 2 + large_topology + mask {
        return None;
    }
    let long = header[2..2 + large_topology].iter();
    let long = long.fold(0, |length, &byte| length << 8 | u64::from(byte));
    Some(if large_topology == 0 {
        short.into()
    } else {
        long
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_their_bytes_are_cut() {
        let mut bytes = b"GET / HTTP/1.1\r\nupgrade: websocket\r\n\r\n".to_vec();
        // A masked text, a ping, a long text, a text in two frames.
        bytes.extend([0x81, 0x82, 1, 2, 3, 4, 0xaa, 0xbb, 0x89, 0]);
        bytes.extend([0x81, 126, 1, 44]);
        bytes.extend([0x81; 300]);
        bytes.extend([0x01, 1, b'a', 0x80, 1, b'b']);
        for piece in [1, 2, 3, 7, 1000] {
            let mut frames = Frames::default();
            bytes.chunks(piece).for_each(|bytes| frames.take(bytes));
            assert_eq!(frames.messages, 3, "{piece}");
        }
    }
}
