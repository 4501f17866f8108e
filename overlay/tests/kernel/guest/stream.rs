//! A connection between two containers that never rests, and what is seen of it on the underlay.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kontena_lab::{Seen, Switch, capture};

use super::host::{BOUND, Host, finally};
use kontena_overlay_lab::{Container, uninterrupted};

/// What is sent again and again. It is in every packet but the smallest.
const MARKER: &[u8; 16] = b"kontena-in-clear";
/// What is sent at once.
const BLOCK: u64 = 16 << 10;
/// So much is under way at most, wherever it waits.
const UNDER_WAY: u64 = 4 * BLOCK;
/// When so much more has arrived, a good part of it took the path that there is now.
const MORE: u64 = 4 * UNDER_WAY;
/// How long the sender leaves the machine to others after each block: what is tested is the way, not how much it carries.
const PAUSE: Duration = Duration::from_millis(20);

/// How far a connection is.
#[derive(Default)]
pub struct Progress {
    received: AtomicU64,
    done: AtomicBool,
}

impl Progress {
    /// Waits until much more has arrived.
    pub fn goes_on(&self) {
        let before = self.received.load(Ordering::Relaxed);
        finally("the stream goes on", || {
            let now = self.received.load(Ordering::Relaxed);
            let enough = now >= before + MORE || self.done.load(Ordering::Relaxed);
            enough
                .then_some(())
                .ok_or(format!("{} bytes more", now - before))
        });
    }
}

/// Sends from one container to another meanwhile: the connection does not break, and everything arrives as it was sent.
pub fn streaming(from: &Container, to: &Container, work: impl FnOnce(&Progress)) {
    let listener = to
        .netns
        .inside(|| TcpListener::bind((to.address, 0)))
        .unwrap();
    let at = listener.local_addr().unwrap();
    let connect = || TcpStream::connect_timeout(&at, BOUND);
    let sender = from.netns.inside(connect).unwrap();
    let (receiver, _) = listener.accept().unwrap();
    let progress = Progress::default();
    // Nobody waits for what does not come any more.
    let until_done = |end: &dyn Fn() -> u64| {
        let length = catch_unwind(AssertUnwindSafe(end));
        progress.done.store(true, Ordering::Relaxed);
        length.unwrap_or_else(|failure| resume_unwind(failure))
    };
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| until_done(&|| send(&sender, &progress)));
        let receiving = scope.spawn(|| until_done(&|| receive(&receiver, &progress)));
        let worked = catch_unwind(AssertUnwindSafe(|| work(&progress)));
        progress.done.store(true, Ordering::Relaxed);
        let ends = (sending.join(), receiving.join());
        worked.unwrap_or_else(|failure| resume_unwind(failure));
        let (sent, received) = (ends.0.unwrap(), ends.1.unwrap());
        assert_eq!(sent, received, "everything arrives");
        assert!(received >= MORE, "{received} bytes are no stream");
    });
}

fn send(mut stream: &TcpStream, progress: &Progress) -> u64 {
    stream.set_write_timeout(Some(BOUND)).unwrap();
    let block = MARKER.repeat(BLOCK as usize / MARKER.len());
    let mut sent = 0;
    while !progress.done.load(Ordering::Relaxed) {
        std::thread::sleep(PAUSE);
        if sent - progress.received.load(Ordering::Relaxed) >= UNDER_WAY {
            continue;
        }
        uninterrupted(|| stream.write_all(&block)).expect("the connection holds");
        sent += BLOCK;
    }
    stream.shutdown(Shutdown::Write).unwrap();
    sent
}

fn receive(mut stream: &TcpStream, progress: &Progress) -> u64 {
    stream.set_read_timeout(Some(BOUND)).unwrap();
    let mut received = 0;
    let mut block = vec![0; 1 << 16];
    loop {
        let length = match uninterrupted(|| stream.read(&mut block)) {
            Ok(0) => return received as u64,
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("nothing comes any more"),
            Err(error) => panic!("the connection broke: {error}"),
        };
        let mut wanted = MARKER.iter().cycle().skip(received % MARKER.len());
        let right = block[..length]
            .iter()
            .all(|octet| wanted.next() == Some(octet));
        assert!(right, "what arrived was not sent, after {received} bytes");
        received += length;
        progress.received.store(received as u64, Ordering::Relaxed);
    }
}

/// What is seen at the first host's port of the switch meanwhile.
pub fn seen(switch: &Switch, work: impl FnOnce()) -> Seen {
    let seen = capture(&switch.netns, "port1", MARKER, work);
    assert!(seen.packets > 0, "{seen:?}");
    seen
}

/// Between two hosts, nothing is in clear meanwhile.
pub fn nothing_in_clear(switch: &Switch, work: impl FnOnce()) {
    let seen = seen(switch, work);
    assert!(seen.marked.is_empty(), "in clear: {seen:?}");
    assert_eq!(seen.lost, 0, "not every packet was looked at: {seen:?}");
}

/// The only containers of two hosts.
pub fn ends(hosts: &[Host]) -> [Arc<Container>; 2] {
    let [a, b] = hosts else { panic!("two hosts") };
    [a, b].map(|host| Arc::clone(&host.containers[0]))
}
