//! Why a host cannot be reached: what its door tells, and who stands at it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use kontena_overlay_lab::{
    BOUND, Host, Netns, Switch, count, counted, grid, intent, pass, settle, trusting, underlay,
    within, world,
};

const KNOCKS: &str = "tcp dport 6783 tcp flags syn";
/// Longer than a peer is silent before it is checked for, with one check a second for
/// a few peers, and the time that each takes.
const KNOCKED: Duration = Duration::from_secs(40);
/// Longer than from one check for a peer to the next one.
const KNOCKED_AGAIN: Duration = Duration::from_secs(40);
/// Longer than from one handshake in vain to the next one.
const GREETED_AGAIN: Duration = Duration::from_secs(40);

/// Why a host cannot reach the others of a grid that trusts nobody, by their numbers.
fn reasons(own: &Host, all: &[&Host]) -> Vec<Option<String>> {
    let report = own.must_reconcile(&intent(&grid(7, &[]), own, all));
    let reasons = report.peers.into_iter().map(|peer| peer.unreachable);
    reasons.collect()
}

/// Whether the reasons are these, the first one of the second host.
fn are(reasons: &[Option<String>], wanted: &[&str]) -> Result<(), String> {
    let each = reasons.iter().zip(wanted);
    let mut each = each.map(|(reason, wanted)| reason.as_ref().is_some_and(|r| r.contains(wanted)));
    let all = reasons.len() == wanted.len() && each.all(|is| is);
    all.then_some(()).ok_or(format!("{reasons:#?}"))
}

/// What is advertised at the door at this address to who comes from a netns, and from where he is.
fn check(netns: &Netns, at: Ipv4Addr) -> std::io::Result<(String, SocketAddr)> {
    let at = SocketAddr::from((at, 6783));
    let mut stream = netns.inside(|| TcpStream::connect_timeout(&at, BOUND))?;
    stream.set_read_timeout(Some(BOUND))?;
    let mut advertised = String::new();
    stream.read_to_string(&mut advertised)?;
    Ok((advertised, stream.local_addr()?))
}

#[test]
fn overlay_tells_a_way_that_is_blocked_from_a_host_that_is_down() {
    let switch = Switch::start();
    let hosts: Vec<Host> = (1..=5).map(|number| Host::start(&switch, number)).collect();
    let all: Vec<&Host> = hosts.iter().collect();
    let [own, blocked, idle, down, strange] = all[..] else {
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
    count(&blocked.netns, "eth0", KNOCKS);
    for host in [idle, down, strange] {
        host.stop_agent();
    }
    down.netns.run("ip link set eth0 down");
    // As the agent of the original has it.
    let other = strange
        .netns
        .inside(|| TcpListener::bind(("0.0.0.0", 6783)));
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
        "198.51.100.2: an agent answers at TCP port 6783; UDP is blocked on the way",
        "198.51.100.3: TCP port 6783 is closed",
        "198.51.100.4: no answer at TCP port 6783 either: the host is down",
        "198.51.100.5: what listens at TCP port 6783 does not answer as an agent",
    ];
    within(KNOCKED, "all causes are known", || {
        pass(&grid(7, &[]), blocked, &all);
        are(&reasons(own, &all), &wanted)
    });
    let checks = counted(&blocked.netns);
    assert!(checks > 0, "the counter sees what there is to see");

    // Nobody reconciles for what is found out, and a report is no news of every check.
    let known = own.must_reconcile(&intent(&grid(7, &[]), own, &all));
    let carried_out = known.carried_out.unwrap();
    within(KNOCKED_AGAIN, "another check", || {
        assert!(carried_out.suits(&own.peers()));
        let now = reasons(own, &all);
        are(&now, &wanted).expect("it is the same all the time");
        (counted(&blocked.netns) > checks)
            .then_some(())
            .ok_or("none".to_owned())
    });

    blocked.netns.run("nft delete table ip wall");
    within(GREETED_AGAIN, "the way is open", || {
        pass(&grid(7, &[]), blocked, &all);
        match &reasons(own, &all)[0] {
            None => Ok(()),
            Some(why) => Err(why.clone()),
        }
    });
    let checks = counted(&blocked.netns);
    let begun = Instant::now();
    while begun.elapsed() < KNOCKED_AGAIN {
        assert_eq!(counted(&blocked.netns), checks, "it lives");
        // It must hold all the time, so it is looked at again and again.
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(reasons(own, &all)[0], None);
}

#[test]
fn overlay_s_door_is_open_to_peers_whoever_crowds_at_it() {
    let (_switch, hosts) = world(2, &trusting());
    let [a, b] = &hosts[..] else { unreachable!() };
    let at = SocketAddr::from((underlay(1), 6783));
    let connect = || TcpStream::connect_timeout(&at, BOUND).unwrap();
    // Some hold on to what they have, some talk.
    let held: Vec<TcpStream> = b.netns.inside(|| (0..100).map(|_| connect()).collect());
    let mut talker = b.netns.inside(connect);
    talker.set_write_timeout(Some(BOUND)).unwrap();
    let much = vec![7; 1 << 20];
    let cut_off = loop {
        if let Err(error) = talker.write_all(&much) {
            break error;
        }
    };
    assert_ne!(cut_off.kind(), ErrorKind::WouldBlock, "it hangs");
    // A container is a stranger like any other, and learns no more.
    let container = &a.containers[0].netns;
    for (netns, at) in [(&b.netns, underlay(1)), (container, a.node.address)] {
        let (advertised, own) = check(netns, at).unwrap();
        assert_eq!(advertised, format!("kontena-agent {own}\n"));
    }
    drop(held);
    assert_eq!(settle(&trusting(), &[a, b]), 0);
    a.containers[0].netns.must_reach(b.containers[0].address);
}

#[test]
fn overlay_works_where_something_else_has_the_door_s_port() {
    let switch = Switch::start();
    let hosts: Vec<Host> = (1..=2).map(|number| Host::start(&switch, number)).collect();
    let all: Vec<&Host> = hosts.iter().collect();
    let [a, b] = all[..] else { unreachable!() };
    a.stop_agent();
    let other = a.netns.inside(|| TcpListener::bind(("0.0.0.0", 6783)));
    let other = other.unwrap();
    a.start_agent();
    settle(&trusting(), &all);
    // It is tried again until it can be had.
    drop(other);
    let open = || {
        within(BOUND, "the door is open", || {
            let (advertised, own) = check(&b.netns, underlay(1)).map_err(|err| err.to_string())?;
            assert_eq!(advertised, format!("kontena-agent {own}\n"));
            Ok(())
        });
    };
    open();
    // A successor has the port, whatever connections are still closing.
    a.stop_agent();
    a.start_agent();
    open();
}
