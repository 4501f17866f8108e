//! The two kinds of underlay. A veth pair hands 64 KiB of a stream over as one frame,
//! which flatters whoever sends it as it is; a wire carries packets. So everything is
//! measured on both: on the pairs as the kernel makes them, and with segmentation off
//! at the hosts' ends and the switch's, and receive offload on at the hosts'. A pair
//! does receive offload only for what its other end had to cut. The switch does none:
//! a switch forwards packets, and ours would glue plain TCP but no tunnel's packets.

use std::collections::BTreeMap;

use kontena_lab::{Netns, Switch};

use super::hosts::Host;
use super::process::inside;
use crate::bench::BenchError;

/// The features that count, each as `ethtool` is told it and as it shows it.
const FEATURES: [(&str, &str); 6] = [
    ("tso", "tcp-segmentation-offload"),
    ("gso", "generic-segmentation-offload"),
    ("tx-udp-segmentation", "tx-udp-segmentation"),
    ("tx-udp_tnl-segmentation", "tx-udp_tnl-segmentation"),
    (
        "tx-udp_tnl-csum-segmentation",
        "tx-udp_tnl-csum-segmentation",
    ),
    (RECEIVE, "generic-receive-offload"),
];

/// The one that is not of what is sent.
const RECEIVE: &str = "gro";

/// Whether each feature is on, by the name that `ethtool` is told.
type Features = BTreeMap<&'static str, bool>;

/// What is between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Underlay {
    /// Veth pairs as they are made.
    Veth,
    /// Veth pairs that carry packets.
    Wire,
}

impl Underlay {
    pub(crate) const ALL: [Self; 2] = [Self::Veth, Self::Wire];

    /// As figures name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Wire => "wire",
        }
    }
}

/// An end of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Host,
    Switch,
}

/// The features of an end of a wire.
pub(crate) fn wire(end: End) -> Features {
    let on = |feature| feature == RECEIVE && end == End::Host;
    FEATURES.iter().map(|(set, _)| (*set, on(*set))).collect()
}

/// Both ends of all pairs.
#[derive(Default)]
pub(crate) struct Ports(Vec<Port>);

struct Port {
    netns: Netns,
    device: String,
    end: End,
    made_with: Features,
}

impl Ports {
    /// Adds a host's pair.
    pub(crate) fn add(&mut self, switch: &Switch, host: &Host) -> Result<(), BenchError> {
        let port = format!("port{}", host.number);
        for (end, netns, device) in [
            (End::Host, &host.netns, "eth0".to_owned()),
            (End::Switch, &switch.netns, port),
        ] {
            self.0.push(Port {
                netns: netns.clone(),
                made_with: features(netns, &device)?,
                device,
                end,
            });
        }
        Ok(())
    }

    /// Makes all pairs of this kind, and makes sure that they are.
    pub(crate) fn set(&self, underlay: Underlay) -> Result<(), BenchError> {
        for port in &self.0 {
            let Port { netns, device, .. } = port;
            let wanted = match underlay {
                Underlay::Veth => port.made_with.clone(),
                Underlay::Wire => wire(port.end),
            };
            let words: Vec<_> = wanted
                .iter()
                .map(|(feature, on)| format!("{feature} {}", if *on { "on" } else { "off" }))
                .collect();
            inside(netns, &format!("ethtool -K {device} {}", words.join(" ")))?;
            let found = features(netns, device)?;
            if found != wanted {
                let why = format!("{device} has {found:?}, not {wanted:?}");
                return Err(BenchError::Failed(why));
            }
        }
        Ok(())
    }
}

fn features(netns: &Netns, device: &str) -> Result<Features, BenchError> {
    let shown = inside(netns, &format!("ethtool -k {device}"))?;
    parse(&shown).ok_or_else(|| BenchError::Failed(format!("{device} lacks features: {shown}")))
}

fn parse(shown: &str) -> Option<Features> {
    let on = |name: &str| {
        shown.lines().find_map(|line| {
            let (feature, state) = line.split_once(':')?;
            (feature.trim() == name).then(|| state.trim_start().starts_with("on"))
        })
    };
    let features = FEATURES.iter();
    features
        .map(|(set, name)| Some((*set, on(name)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "Features for eth0:
tcp-segmentation-offload: on
\ttx-tcp-segmentation: on
generic-segmentation-offload: on
generic-receive-offload: off
tx-udp_tnl-segmentation: on
tx-udp_tnl-csum-segmentation: off [fixed]
tx-udp-segmentation: on
";

    #[test]
    fn what_ethtool_shows() {
        let features = parse(SHOWN).unwrap();
        let on = [
            ("gro", false),
            ("gso", true),
            ("tso", true),
            ("tx-udp-segmentation", true),
            ("tx-udp_tnl-csum-segmentation", false),
            ("tx-udp_tnl-segmentation", true),
        ];
        assert_eq!(features, BTreeMap::from(on));
        assert_eq!(parse("Features for eth0:\n"), None);
    }

    #[test]
    fn nothing_of_a_wire_is_on_but_what_hosts_receive() {
        let on = |end| -> Vec<_> {
            let features = wire(end).into_iter();
            features
                .filter(|(_, on)| *on)
                .map(|(name, _)| name)
                .collect()
        };
        assert_eq!(on(End::Host), ["gro"]);
        assert!(on(End::Switch).is_empty());
    }
}
