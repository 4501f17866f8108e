//! Why a host cannot be reached: the reachability listener, its checks, and busy clients.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use kontena_overlay_lab::{
    BOUND, Host, Netns, Switch, converge, count, counted, eventually, grid, intent, pass, trusting,
    underlay, within, world,
};

const CHECKS: &str = "tcp dport 6783 tcp flags syn";
/// Longer than a peer is silent before it is checked, with one check a second for a few peers, and
/// the time that each takes.
const CHECKED_WITHIN: Duration = Duration::from_secs(40);
/// Longer than from one check of a peer to the next.
const CHECKED_AGAIN: Duration = Duration::from_secs(40);
/// Longer than from one failed handshake to the next.
const RETRIED_WITHIN: Duration = Duration::from_secs(40);

/// Why a host cannot reach the others of a grid without trusted subnets, by their numbers.
fn reasons(own: &Host, all: &[&Host]) -> Vec<Option<String>> {
    let report = own.must_reconcile(&intent(&grid(7, &[]), own, all));
    let reasons = report.peers.into_iter().map(|peer| peer.unreachable);
    reasons.collect()
}

/// Whether the reasons contain these, that of the second host first.
fn are(reasons: &[Option<String>], wanted: &[&str]) -> Result<(), String> {
    let each = reasons.iter().zip(wanted);
    let mut each = each.map(|(reason, wanted)| reason.as_ref().is_some_and(|r| r.contains(wanted)));
    let all = reasons.len() == wanted.len() && each.all(|is| is);
    all.then_some(()).ok_or(format!("{reasons:#?}"))
}

/// What the listener at this address sends to a client in this namespace, and the client's address.
fn check(netns: &Netns, at: Ipv4Addr) -> std::io::Result<(String, SocketAddr)> {
    let at = SocketAddr::from((at, 6783));
    let mut stream = netns.inside(|| TcpStream::connect_timeout(&at, BOUND))?;
    stream.set_read_timeout(Some(BOUND))?;
    let mut line = String::new();
    stream.read_to_string(&mut line)?;
    Ok((line, stream.local_addr()?))
}

#[test]
fn overlay_tells_a_blocked_path_from_a_host_that_is_down() {
    let switch = Switch::start();
    let hosts: Vec<Host> = (1..=5).map(|number| Host::start(&switch, number)).collect();
    let all: Vec<&Host> = hosts.iter().collect();
    let [own, blocked, idle, down, weave] = all[..] else {
        unreachable!()
    };
    for line in [
        "add table ip wall",
        "add chain ip wall in { type filter hook input priority 0 ; }",
        "add chain ip wall out { type filter hook output priority 0 ; }",
        "add rule ip wall in udp dport 6783 drop",
        "add rule ip wall out udp dport 6783 drop",
    ] {
        blocked.netns.run(&format!("nft {line}"));
    }
    count(&blocked.netns, "eth0", CHECKS);
    for host in [idle, down, weave] {
        host.stop_agent();
    }
    down.netns.run("ip link set eth0 down");
    // What Weave, which the original used, sends on this port.
    let other = weave.netns.inside(|| TcpListener::bind(("0.0.0.0", 6783)));
    let other = other.unwrap();
    std::thread::spawn(move || {
        for stream in other.incoming() {
            let _ = stream.unwrap().write_all(b"weave\x01\x02");
        }
    });

    let plain = "no handshake with 198.51.100.";
    let before = reasons(own, &all);
    are(&before, &[plain; 4]).unwrap();
    assert!(!format!("{before:?}").contains("TCP"), "{before:?}");
    let wanted = [
        "198.51.100.2: an agent answers at TCP port 6783; UDP is blocked on the path",
        "198.51.100.3: TCP port 6783 is closed",
        "198.51.100.4: no answer at TCP port 6783 either: the host is down",
        "198.51.100.5: TCP port 6783 is open, but no agent answers there",
    ];
    within(CHECKED_WITHIN, "all causes are known", || {
        pass(&grid(7, &[]), blocked, &all);
        are(&reasons(own, &all), &wanted)
    });
    let checks = counted(&blocked.netns);
    assert!(checks > 0, "the counter saw no check");

    // Outcomes require no pass, and checks with the same outcome no report.
    let known = own.must_reconcile(&intent(&grid(7, &[]), own, &all));
    let carried_out = known.carried_out.unwrap();
    within(CHECKED_AGAIN, "another check", || {
        assert!(carried_out.suits(&own.peers()));
        let now = reasons(own, &all);
        are(&now, &wanted).expect("it is the same all the time");
        (counted(&blocked.netns) > checks)
            .then_some(())
            .ok_or("none".to_owned())
    });

    blocked.netns.run("nft delete table ip wall");
    within(RETRIED_WITHIN, "the path is open", || {
        pass(&grid(7, &[]), blocked, &all);
        match &reasons(own, &all)[0] {
            None => Ok(()),
            Some(why) => Err(why.clone()),
        }
    });
    let checks = counted(&blocked.netns);
    let start = Instant::now();
    while start.elapsed() < CHECKED_AGAIN {
        assert_eq!(counted(&blocked.netns), checks, "it is alive");
        // It must hold all the time, so it is checked again and again.
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(reasons(own, &all)[0], None);
}

#[test]
fn overlay_reachability_listener_serves_peers_during_a_burst() {
    let (_switch, hosts) = world(2, &trusting());
    let [a, b] = &hosts[..] else { unreachable!() };
    let at = SocketAddr::from((underlay(1), 6783));
    let connect = || TcpStream::connect_timeout(&at, BOUND).unwrap();
    // Some clients stay connected, one sends data.
    let held: Vec<TcpStream> = b.netns.inside(|| (0..100).map(|_| connect()).collect());
    let mut sender = b.netns.inside(connect);
    sender.set_write_timeout(Some(BOUND)).unwrap();
    let much = vec![7; 1 << 20];
    let error = loop {
        if let Err(error) = sender.write_all(&much) {
            break error;
        }
    };
    assert_ne!(error.kind(), ErrorKind::WouldBlock, "it hangs");
    let (line, own) = check(&b.netns, underlay(1)).unwrap();
    assert_eq!(line, format!("kontena-agent {own}\n"));
    drop(held);
    assert_eq!(converge(&trusting(), &[a, b]), 0);
    a.containers[0].netns.must_reach(b.containers[0].address);
}

#[test]
fn overlay_works_where_the_reachability_listener_s_port_is_in_use() {
    let switch = Switch::start();
    let hosts: Vec<Host> = (1..=2).map(|number| Host::start(&switch, number)).collect();
    let all: Vec<&Host> = hosts.iter().collect();
    let [a, b] = all[..] else { unreachable!() };
    a.stop_agent();
    // A program that the agent was about to start may hold the port for a moment more.
    let other = eventually("the agent is gone", || {
        let other = a.netns.inside(|| TcpListener::bind(("0.0.0.0", 6783)));
        other.map_err(|err| err.to_string())
    });
    a.start_agent();
    converge(&trusting(), &all);
    // The port is tried again until it is free.
    drop(other);
    let open = || {
        within(BOUND, "the listener is open", || {
            let (line, own) = check(&b.netns, underlay(1)).map_err(|err| err.to_string())?;
            assert_eq!(line, format!("kontena-agent {own}\n"));
            Ok(())
        });
    };
    open();
    // A new agent gets the port, whatever connections are still closing.
    a.stop_agent();
    a.start_agent();
    open();
}
