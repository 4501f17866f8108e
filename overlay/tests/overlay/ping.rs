//! Echoes from a node's own address: they take the way that frames of containers take.

use std::time::Duration;

use kontena_overlay::Echoes;

use crate::encrypted::encryption;
use kontena_overlay_lab::{
    Host, Switch, count, counted, eventually, grid, pass, settle, trusting, world, world_of,
};

/// Drops packets that come to a host's underlay, before anything else sees them.
fn block(host: &Host, what: &str) {
    host.netns.run("nft add table netdev block");
    host.netns.run(
        "nft add chain netdev block in { type filter hook ingress device eth0 priority -400 ; }",
    );
    let rule = format!("nft add rule netdev block in {what} drop");
    host.netns.run(&rule);
}

fn unblock(host: &Host) {
    host.netns.run("nft delete table netdev block");
}

fn echo(from: &Host, to: &Host) -> Echoes {
    from.echo(to.node.address, 3).unwrap()
}

/// All three are answered, and one of full length; on a busy machine not always at once.
fn must_pass(from: &Host, to: &Host) {
    eventually("every echo is answered", || {
        let echoes = echo(from, to);
        let all = echoes.round_trips.len() == 3 && echoes.full_size_passes;
        all.then_some(()).ok_or(format!("{echoes:?}"))
    });
}

#[test]
fn overlay_echoes_take_the_way_of_their_pair() {
    let narrow = grid(7, &["198.51.100.1/32", "198.51.100.2/32"]);
    let (_switch, hosts) = world(3, &narrow);
    let [a, b, c] = &hosts[..] else {
        unreachable!()
    };
    for host in &hosts {
        count(&host.netns, "eth0", "udp dport 6784");
    }
    for (from, to) in [(a, c), (c, a), (b, c)] {
        must_pass(from, to);
    }
    // The other two may have something else to say to each other.
    assert_eq!(counted(&c.netns), 0);
    for (from, to) in [(a, b), (b, a)] {
        let before = [counted(&from.netns), counted(&to.netns)];
        must_pass(from, to);
        let after = [counted(&from.netns), counted(&to.netns)];
        // Three and the long one, there and back.
        assert!(after[0] >= before[0] + 4 && after[1] >= before[1] + 4);
    }
    assert_eq!(counted(&c.netns), 0);
    let echoes = echo(a, c);
    assert_eq!(echoes.sent, 3);
    let quick = |took: &Duration| *took > Duration::ZERO && *took <= Duration::from_secs(1);
    assert!(echoes.round_trips.iter().all(quick), "{echoes:?}");
}

#[test]
fn overlay_echoes_find_a_fast_path_that_is_blocked_while_probes_pass() {
    let (_switch, hosts) = world(2, &trusting());
    let all: Vec<&Host> = hosts.iter().collect();
    let [a, b] = &hosts[..] else { unreachable!() };
    must_pass(a, b);
    block(b, "udp dport 6784");
    for (from, to) in [(a, b), (b, a)] {
        let echoes = echo(from, to);
        assert_eq!(echoes.sent, 3);
        assert!(echoes.round_trips.is_empty(), "{echoes:?}");
        assert!(!echoes.full_size_passes);
        // What is advertised in the encrypted path shows nothing of it.
        assert!(from.peers()[&to.node.id].alive);
    }
    // The encrypted path is free.
    settle(&encryption(), &all);
    must_pass(a, b);
    unblock(b);
    settle(&trusting(), &all);
    must_pass(b, a);
}

#[test]
fn overlay_echoes_find_a_network_that_is_too_narrow() {
    for narrow in [trusting(), encryption()] {
        let (_switch, hosts) = world(2, &narrow);
        let [a, b] = &hosts[..] else { unreachable!() };
        must_pass(a, b);
        block(b, "ip length > 1400");
        let echoes = eventually("short echoes are answered", || {
            let echoes = echo(a, b);
            let all = echoes.round_trips.len() == 3;
            let told = format!("{echoes:?}");
            all.then_some(echoes).ok_or(told)
        });
        assert!(!echoes.full_size_passes);
        unblock(b);
        must_pass(a, b);
    }
}

#[test]
fn overlay_echoes_need_an_overlay() {
    let switch = Switch::start();
    let hosts = [Host::start(&switch, 1), Host::start(&switch, 2)];
    let [a, b] = &hosts;
    let error = a.echo(b.node.address, 3).unwrap_err().to_string();
    let begin = "cannot send echoes from 10.81.0.1: ";
    assert!(error.starts_with(begin), "{error}");
    // With one, and without the other: it is asked and does not answer.
    pass(&encryption(), a, &[a, b]);
    let echoes = echo(a, b);
    assert_eq!((echoes.sent, echoes.round_trips.len()), (3, 0));
}

#[test]
fn overlay_echoes_cross_to_a_host_with_wireguard() {
    let starts = [Host::start, Host::start_with_wireguard];
    let (_switch, hosts) = world_of(
        &starts.map(|start| start as kontena_overlay_lab::Start),
        &encryption(),
    );
    let [a, b] = &hosts[..] else { unreachable!() };
    must_pass(a, b);
    must_pass(b, a);
}
