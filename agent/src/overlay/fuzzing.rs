//! What peers and devices say to the overlay.

use std::time::Duration;

use kontena_fuzz::Target;

use super::probe::{BYTES_WITHOUT_TRIALS, Probe, Trials};
pub(crate) use super::wireguard::fuzzing::{NETLINK, UAPI};

/// A probe that is read is written as the same, and so are all its octets that mean
/// something.
pub(crate) const PROBE: Target = Target {
    name: "probe",
    check: probe,
    seeds,
};

fn probe(octets: &[u8]) {
    let Some(probe) = Probe::read(octets) else {
        let number = octets.get(16..20).is_some_and(|number| number != [0; 4]);
        let known = octets.starts_with(b"KNP1") && octets.len() >= BYTES_WITHOUT_TRIALS && number;
        return assert!(!known, "a probe is not read");
    };
    let written = probe.write();
    // A version that knows no trials writes nothing of them.
    let as_read = match probe.trials {
        Trials::Unknown => &written[..BYTES_WITHOUT_TRIALS],
        _ => &written[..],
    };
    assert_eq!(Probe::read(as_read), Some(probe));
    if let Trials::UpTo(_) = probe.trials {
        assert_eq!(written[40..44], octets[40..44], "trials");
    }
    assert_eq!(written[..4], octets[..4], "the magic");
    assert_eq!(written[4], octets[4] & 1, "the flags");
    assert_eq!(written[8..24], octets[8..24], "agreement, number, run");
    if probe.heard.is_some() {
        assert_eq!(written[24..32], octets[24..32], "what was heard");
    }
    if probe.hears_at.is_some() {
        assert_eq!(written[32..38], octets[32..38], "where it is heard");
    }
    for length in 0..BYTES_WITHOUT_TRIALS {
        assert_eq!(Probe::read(&octets[..length]), None, "{length} octets");
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let whole = Probe {
        agreement: 0x0102_0304_0506_0708,
        hears_at: Some(std::net::SocketAddrV4::new([198, 51, 100, 7].into(), 6783)),
        accepts: true,
        number: 5,
        run: 6,
        heard: Some((9, Duration::from_micros(256))),
        trials: Trials::UpTo(4),
    };
    let first = Probe {
        hears_at: None,
        accepts: false,
        heard: None,
        ..whole
    };
    // A later version adds at the end.
    let later = [&whole.write()[..], &[7; 8]].concat();
    let before = whole.write()[..BYTES_WITHOUT_TRIALS].to_vec();
    vec![
        whole.write().to_vec(),
        first.write().to_vec(),
        later,
        before,
    ]
}
