//! The properties of what the overlay reads from peers and devices, for the fuzzer and
//! for tests: `kontena-fuzz` says how they are run. It is compiled for this crate's tests
//! and with `--cfg fuzzing`, and in no program that is shipped.

use std::time::Duration;

use kontena_fuzz::Target;

use crate::peer::heartbeat::{BYTES_WITHOUT_PATH_PROBES, Heartbeat, ProbesHeard};
use crate::wireguard::fuzzing::{NETLINK, UAPI};

/// One for each parser.
pub const TARGETS: &[Target] = &[HEARTBEAT, NETLINK, UAPI];

/// A heartbeat that is read is written as the same, and so are all its octets that mean
/// something.
pub(crate) const HEARTBEAT: Target = Target {
    name: "heartbeat",
    check: heartbeat,
    seeds,
};

fn heartbeat(octets: &[u8]) {
    let Some(heartbeat) = Heartbeat::read(octets) else {
        let number = octets.get(16..20).is_some_and(|number| number != [0; 4]);
        let known =
            octets.starts_with(b"KNP1") && octets.len() >= BYTES_WITHOUT_PATH_PROBES && number;
        return assert!(!known, "a heartbeat is not read");
    };
    let written = heartbeat.write();
    // A version that knows no path_probes writes nothing of them.
    let as_read = match heartbeat.path_probes {
        ProbesHeard::Unknown => &written[..BYTES_WITHOUT_PATH_PROBES],
        _ => &written[..],
    };
    assert_eq!(Heartbeat::read(as_read), Some(heartbeat));
    if let ProbesHeard::UpTo(_) = heartbeat.path_probes {
        assert_eq!(written[40..44], octets[40..44], "path_probes");
    }
    assert_eq!(written[..4], octets[..4], "the magic");
    assert_eq!(written[4], octets[4] & 1, "the flags");
    assert_eq!(written[8..24], octets[8..24], "agreement, number, run");
    if heartbeat.heard.is_some() {
        assert_eq!(written[24..32], octets[24..32], "what was heard");
    }
    if heartbeat.hears_at.is_some() {
        assert_eq!(written[32..38], octets[32..38], "where it is heard");
    }
    for length in 0..BYTES_WITHOUT_PATH_PROBES {
        assert_eq!(Heartbeat::read(&octets[..length]), None, "{length} octets");
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let whole = Heartbeat {
        agreement: 0x0102_0304_0506_0708,
        hears_at: Some(std::net::SocketAddrV4::new([198, 51, 100, 7].into(), 6783)),
        accepts: true,
        number: 5,
        run: 6,
        heard: Some((9, Duration::from_micros(256))),
        path_probes: ProbesHeard::UpTo(4),
    };
    let first = Heartbeat {
        hears_at: None,
        accepts: false,
        heard: None,
        ..whole
    };
    // A later version adds at the end.
    let later = [&whole.write()[..], &[7; 8]].concat();
    let before = whole.write()[..BYTES_WITHOUT_PATH_PROBES].to_vec();
    vec![
        whole.write().to_vec(),
        first.write().to_vec(),
        later,
        before,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    kontena_fuzz::replays! {
        TARGETS,
        heartbeat: HEARTBEAT => 20_000,
        netlink: NETLINK => 20_000,
        uapi: UAPI => 20_000,
    }
}
