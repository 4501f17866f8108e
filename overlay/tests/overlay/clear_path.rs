//! Hosts that are to talk in clear, where the network between them drops clear packets.

use kontena_overlay::Clear;

use crate::encrypted::{clear_packets, count_clear};
use crate::reach::everyone_reaches_everyone;
use kontena_overlay_lab::{Host, Switch, converge, eventually, intent, pass, trusting, world};

/// A firewall before a host, which drops matching packets on their way in.
fn lose(host: &Host, packets: &str) {
    for line in [
        "add table inet firewall",
        "add chain inet firewall in { type filter hook prerouting priority -400 ; }",
    ] {
        host.netns.run(&format!("nft {line}"));
    }
    let rule = format!("nft add rule inet firewall in iifname eth0 {packets} counter drop");
    host.netns.run(&rule);
}

fn lose_nothing(host: &Host) {
    host.netns.run("nft delete table inet firewall");
}

/// Passes until the peers are this clear, and no step is left.
fn pass_until(all: &[&Host], wanted: &[Clear]) {
    eventually("the peers", || {
        // Read before the passes, so that they are based on it.
        let peers = all.iter().flat_map(|host| host.peers().into_values());
        let now: Vec<_> = peers.map(|peer| peer.clear).collect();
        let steps: usize = all.iter().map(|host| pass(&trusting(), host, all)).sum();
        let there = now == wanted && steps == 0;
        there.then_some(()).ok_or(format!("{now:?}, {steps} steps"))
    });
}

fn two_behind(firewall: &str) -> (Switch, Vec<Host>) {
    let switch = Switch::start();
    let mut hosts = vec![Host::start(&switch, 1), Host::start(&switch, 2)];
    for (host, id) in hosts.iter_mut().zip([1, 2]) {
        host.add_container(id);
        lose(host, firewall);
    }
    (switch, hosts)
}

#[test]
fn overlay_stays_encrypted_where_clear_packets_are_dropped() {
    let (_switch, hosts) = two_behind("udp dport 6784");
    let all: Vec<&Host> = hosts.iter().collect();
    pass_until(&all, &[Clear::Accept, Clear::Accept]);
    everyone_reaches_everyone(&hosts);
    pass_until(&all, &[Clear::Accept, Clear::Accept]);
    for host in &hosts {
        let listed = host.netns.run("nft list table inet firewall");
        assert!(
            !listed.contains("packets 0 "),
            "path probes were sent: {listed}"
        );
        lose_nothing(host);
    }
    converge(&trusting(), &all);
    count_clear(&hosts);
    everyone_reaches_everyone(&hosts);
    assert!(clear_packets(&hosts) > 0);
}

#[test]
fn overlay_stays_encrypted_where_large_clear_packets_are_dropped() {
    let (_switch, hosts) = two_behind("udp dport 6784 udp length > 1350");
    let all: Vec<&Host> = hosts.iter().collect();
    pass_until(&all, &[Clear::Accept, Clear::Accept]);
    everyone_reaches_everyone(&hosts);
    let [a, _] = &all[..] else { unreachable!() };
    let why = eventually("the reason is reported", || {
        let report = a.must_reconcile(&intent(&trusting(), a, &all));
        let [peer] = &report.peers[..] else {
            panic!("{:?}", report.peers)
        };
        assert_eq!(peer.unreachable, None, "it is reached");
        peer.sealed_because.clone().ok_or("no reason".to_owned())
    });
    assert_eq!(
        why,
        "UDP port 6784 to 198.51.100.2 is blocked, or drops full-size packets"
    );
}

#[test]
fn overlay_leaves_a_clear_path_that_fails_and_returns_to_it() {
    let (_switch, hosts) = world(2, &trusting());
    let all: Vec<&Host> = hosts.iter().collect();
    let [a, b] = &hosts[..] else { unreachable!() };
    lose(b, "udp dport 6784");
    assert!(
        a.containers[0].netns.ping(b.containers[0].address).is_err(),
        "the firewall must drop packets, or this test shows nothing"
    );
    // Only the direction that fails is encrypted.
    pass_until(&all, &[Clear::Accept, Clear::Send]);
    everyone_reaches_everyone(&hosts);
    lose_nothing(b);
    converge(&trusting(), &all);
    everyone_reaches_everyone(&hosts);
}
