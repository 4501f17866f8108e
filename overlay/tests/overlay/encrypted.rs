//! Encrypted and clear paths side by side, and changes between the two.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kontena_overlay::Clear;
use kontena_schema::agent::GridSettings;
use kontena_schema::mac::Mac;
use kontena_schema::path::Path;
use kontena_sleeve::PrivateKey;

use crate::ports::datagram;
use crate::reach::everyone_reaches_everyone;
use kontena_overlay_lab::{
    BOUND, Host, Netns, Switch, converge, count, counted, dropped, eventually, grid, intent, pass,
    public_keys, trusting, underlay, uninterrupted, world,
};

const CLEAR: &str = "udp dport 6784";

/// A grid without trusted subnets.
pub fn encryption() -> GridSettings {
    grid(7, &[])
}

pub fn count_clear(hosts: &[Host]) {
    for host in hosts {
        count(&host.netns, "eth0", CLEAR);
    }
}

pub fn clear_packets(hosts: &[Host]) -> u64 {
    hosts.iter().map(|host| counted(&host.netns)).sum()
}

#[test]
fn overlay_of_a_grid_without_trusted_subnets_is_encrypted_and_complete() {
    let (_switch, hosts) = world(3, &encryption());
    count_clear(&hosts);
    everyone_reaches_everyone(&hosts);
    assert_eq!(clear_packets(&hosts), 0);
    for host in &hosts {
        for other in &hosts {
            host.netns.must_reach(other.node.address);
        }
        let drops = host.statistics().drops;
        for nothing in [
            "dropped_out",
            "dropped_in",
            "encrypted_wrong_encapsulation",
            "encrypted_wrong_sender",
            "encrypted_arp_in",
        ] {
            assert_eq!(drops[nothing], 0, "{nothing}");
        }
    }
    let all: Vec<&Host> = hosts.iter().collect();
    assert_eq!(
        converge(&encryption(), &all),
        0,
        "a second pass changes nothing"
    );
    // The counter would see clear packets.
    converge(&trusting(), &all);
    everyone_reaches_everyone(&hosts);
    assert!(clear_packets(&hosts) > 0);
}

#[test]
fn overlay_has_encrypted_and_clear_peers_on_one_host() {
    let narrow = grid(7, &["198.51.100.1/32", "198.51.100.2/32"]);
    let (_switch, hosts) = world(3, &narrow);
    count_clear(&hosts);
    everyone_reaches_everyone(&hosts);
    assert!(counted(&hosts[0].netns) > 0 && counted(&hosts[1].netns) > 0);
    assert_eq!(counted(&hosts[2].netns), 0);
    // A broadcast arrives once at each, whichever path it takes.
    for host in &hosts[1..] {
        count(&host.containers[0].netns, "ethwe", "udp dport 9");
    }
    let from = &hosts[0].containers[0];
    let everybody = Mac([0xff; 6]);
    let ethernet = [from.attachment().mac, everybody];
    let frame = datagram(ethernet, [from.address, Ipv4Addr::BROADCAST], &[]);
    for _ in 0..10 {
        kontena_lab::send(&from.netns, "ethwe", &frame);
    }
    for host in &hosts[1..] {
        eventually("ten frames", || match counted(&host.containers[0].netns) {
            10 => Ok(()),
            other => Err(other.to_string()),
        });
    }
}

#[test]
fn overlay_of_two_ends_that_disagree_is_encrypted() {
    let (_switch, hosts) = world(2, &trusting());
    let all: Vec<&Host> = hosts.iter().collect();
    let [a, b] = &hosts[..] else { unreachable!() };
    // One end is cut off from the Master while trust is withdrawn.
    pass(&encryption(), a, &all);
    eventually("the other end learns of it from its peer", || {
        pass(&trusting(), b, &all);
        match b.peers()[&a.node.id].clear {
            Clear::No => Ok(()),
            clear => Err(format!("{clear:?}")),
        }
    });
    pass(&trusting(), b, &all);
    count_clear(&hosts);
    everyone_reaches_everyone(&hosts);
    assert_eq!(clear_packets(&hosts), 0);
    // It is not clear again before both know that it may be.
    pass(&trusting(), b, &all);
    assert_eq!(b.peers()[&a.node.id].clear, Clear::No);
    converge(&trusting(), &all);
}

#[test]
fn overlay_sends_nothing_in_clear_to_a_foreign_host_at_a_peer_s_address() {
    let switch = Switch::start();
    let mut hosts: Vec<Host> = (1..=2).map(|number| Host::start(&switch, number)).collect();
    let foreign = Host::start(&switch, 9);
    for (host, id) in hosts.iter_mut().zip([1, 2]) {
        host.add_container(id);
    }
    // The directory has the second host's address where the foreign host is.
    hosts[1].node.site.private_ip = Some(underlay(9));
    let all: Vec<&Host> = hosts.iter().collect();
    count(&foreign.netns, "eth0", CLEAR);
    eventually("the encrypted path", || {
        for host in &all {
            pass(&trusting(), host, &all);
        }
        let peers = [all[0].peers(), all[1].peers()];
        let alive = peers
            .iter()
            .flat_map(|peers| peers.values())
            .all(|peer| peer.alive);
        alive.then_some(()).ok_or(format!("{peers:?}"))
    });
    everyone_reaches_everyone(&hosts);
    for _ in 0..3 {
        for host in &all {
            let report = host.must_reconcile(&intent(&trusting(), host, &all));
            assert!(
                matches!(report.peers[0].path, Path::Sealed { .. }),
                "{:?}",
                report.peers
            );
        }
    }
    let seen = hosts[0].must_reconcile(&intent(&trusting(), &hosts[0], &all));
    assert_eq!(seen.peers[0].path, Path::Sealed { to: underlay(2) });
    assert_eq!(counted(&foreign.netns), 0);
}

#[test]
fn overlay_tries_a_peer_at_its_other_address() {
    let switch = Switch::start();
    let mut hosts: Vec<Host> = (1..=2).map(|number| Host::start(&switch, number)).collect();
    for (host, number) in hosts.iter_mut().zip([1, 2]) {
        host.add_container(number);
        let site = &mut host.node.site;
        // There is no host at the first address of each.
        site.public_ip = Some(underlay(number));
        site.private_ip = Some(underlay(100 + number));
    }
    let all: Vec<&Host> = hosts.iter().collect();
    let started = Instant::now();
    let look = || {
        for host in &all {
            pass(&encryption(), host, &all);
        }
        let intent = intent(&encryption(), all[0], &all);
        all[0].must_reconcile(&intent).peers.remove(0)
    };
    let report = look();
    let why = report.unreachable.expect("there is no host");
    assert!(why.contains("no handshake with 198.51.100.102"), "{why}");
    // It takes 15 s and a handshake.
    let found = loop {
        let report = look();
        if report.unreachable.is_none() {
            break report;
        }
        assert!(started.elapsed() < BOUND + BOUND, "{report:?}");
        // A pause between two looks, which have a bound: each is a pass on both hosts.
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(started.elapsed() >= Duration::from_secs(14));
    assert_eq!(found.path, Path::Sealed { to: underlay(2) });
    everyone_reaches_everyone(&hosts);
}

#[test]
fn overlay_without_its_encrypted_path_sends_nothing() {
    let (_switch, hosts) = world(2, &encryption());
    let all: Vec<&Host> = hosts.iter().collect();
    let [a, b] = &hosts[..] else { unreachable!() };
    a.containers[0].netns.must_reach(b.containers[0].address);
    count_clear(&hosts);
    a.stop_agent();
    assert!(a.containers[0].netns.ping(b.containers[0].address).is_err());
    assert!(b.containers[0].netns.ping(a.containers[0].address).is_err());
    assert_eq!(clear_packets(&hosts), 0);
    assert_eq!(dropped(a, "dropped_out"), 0, "nothing was sent");
    a.start_agent();
    converge(&encryption(), &all);
    a.containers[0].netns.must_reach(b.containers[0].address);
    // The device alone is enough, and it is recreated.
    a.netns.run("ip link del kontena-tap");
    assert!(b.containers[0].netns.ping(a.containers[0].address).is_err());
    converge(&encryption(), &all);
    a.containers[0].netns.must_reach(b.containers[0].address);
    assert_eq!(clear_packets(&hosts), 0);
}

#[test]
fn overlay_rotates_a_key_and_reports_the_next_one_as_known() {
    let (_switch, mut hosts) = world(2, &encryption());
    let old = hosts[0].keys[0].clone();
    let new = PrivateKey::from_octets([77; 32]);
    let look = |hosts: &[Host]| {
        let all: Vec<&Host> = hosts.iter().collect();
        pass(&encryption(), all[0], &all);
        let report = all[1].must_reconcile(&intent(&encryption(), all[1], &all));
        everyone_reaches_everyone(hosts);
        report.peers[0].next_key
    };
    hosts[0].node.keys = public_keys(&old, Some(&new));
    assert_eq!(look(&hosts), Some(new.public()));
    hosts[0].keys = vec![new.clone(), old.clone()];
    look(&hosts);
    eventually("the new key is in use on both sides", || {
        let health = [hosts[0].health(), hosts[1].health()];
        let own = health[0]
            .values()
            .all(|health| health.tunnel.own == new.public());
        let peer = health[1]
            .values()
            .all(|health| health.tunnel.key == new.public());
        (own && peer).then_some(()).ok_or(format!("{health:?}"))
    });
    hosts[0].node.keys = public_keys(&new, None);
    hosts[0].keys = vec![new];
    assert_eq!(look(&hosts), None);
}

#[test]
fn overlay_measures_the_path_to_each_peer() {
    let (_switch, hosts) = world(2, &encryption());
    let health = eventually("a round trip was measured", || {
        let health = hosts[0].health().remove(&hosts[1].node.id).unwrap();
        let measured = health.round_trip.is_some();
        if measured {
            Ok(health)
        } else {
            Err(format!("{health:?}"))
        }
    });
    assert!(health.round_trip > Some(Duration::ZERO));
    assert_eq!(health.loss, Some(0.0));
    assert!(health.tunnel.last_handshake.unwrap() < BOUND);
    assert_eq!(health.tunnel.endpoint, Some((underlay(2), 6783).into()));
}

/// A stream that never pauses, and the longest wait of its receiver.
struct Stream<'a> {
    client: &'a Netns,
    server: &'a Netns,
    to: Ipv4Addr,
    stop: AtomicBool,
    bytes: AtomicU64,
    longest_us: AtomicU64,
}

impl Stream<'_> {
    fn run(&self) {
        let listener = self
            .server
            .inside(|| TcpListener::bind((self.to, 0)))
            .unwrap();
        let at = listener.local_addr().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut stream = self
                    .client
                    .inside(|| TcpStream::connect_timeout(&at, BOUND))
                    .unwrap();
                stream.set_write_timeout(Some(BOUND)).unwrap();
                while !self.stop.load(Ordering::Relaxed) {
                    stream.write_all(&[7; 64 << 10]).unwrap();
                }
            });
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(BOUND)).unwrap();
            let mut buffer = vec![0; 1 << 20];
            let mut last = Instant::now();
            loop {
                match uninterrupted(|| stream.read(&mut buffer)) {
                    Ok(0) => break,
                    Ok(read) => drop(self.bytes.fetch_add(read as u64, Ordering::Relaxed)),
                    Err(error) => panic!("the stream broke: {error}"),
                }
                let waited = last.elapsed().as_micros() as u64;
                self.longest_us.fetch_max(waited, Ordering::Relaxed);
                last = Instant::now();
            }
        });
    }
}

/// Idle connections, which must not notice anything.
fn idle(client: &Netns, server: &Netns, to: Ipv4Addr, many: usize) -> Vec<[TcpStream; 2]> {
    let listener = server.inside(|| TcpListener::bind((to, 0))).unwrap();
    let at: SocketAddr = listener.local_addr().unwrap();
    let one = |_| {
        let client = client
            .inside(|| TcpStream::connect_timeout(&at, BOUND))
            .unwrap();
        let (server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(BOUND)).unwrap();
        }
        [client, server]
    };
    (0..many).map(one).collect()
}

/// Each end sends the other a byte.
fn exchange(connections: &mut [[TcpStream; 2]]) {
    for [a, b] in connections {
        let mut received = [0];
        a.write_all(b"!").unwrap();
        b.read_exact(&mut received).unwrap();
        b.write_all(b"?").unwrap();
        a.read_exact(&mut received).unwrap();
    }
}

#[test]
fn overlay_changes_between_encrypted_and_clear_under_traffic() {
    let (_switch, hosts) = world(2, &encryption());
    change_under_traffic(&hosts, 200);
}

/// Connections between two hosts continue while their path changes so often: none is reset,
/// and the stream moves on after each change.
pub fn change_under_traffic(hosts: &[Host], flips: usize) {
    let all: Vec<&Host> = hosts.iter().collect();
    let [a, b] = hosts else { unreachable!() };
    let mut connections = idle(
        &a.containers[0].netns,
        &b.containers[0].netns,
        b.containers[0].address,
        20,
    );
    let stream = Stream {
        client: &a.containers[0].netns,
        server: &b.containers[0].netns,
        to: b.containers[0].address,
        stop: AtomicBool::new(false),
        bytes: AtomicU64::new(0),
        longest_us: AtomicU64::new(0),
    };
    let mut changes = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| stream.run());
        for flip in 0..flips {
            let before = stream.bytes.load(Ordering::Relaxed);
            let start = Instant::now();
            let grid = if flip % 2 == 0 {
                trusting()
            } else {
                encryption()
            };
            converge(&grid, &all);
            changes.push(start.elapsed());
            exchange(&mut connections);
            eventually("the stream continues", || {
                let now = stream.bytes.load(Ordering::Relaxed);
                (now > before).then_some(()).ok_or(format!("{now} bytes"))
            });
        }
        stream.stop.store(true, Ordering::Relaxed);
    });
    // How long it paused depends on what else the machine does, so that is no test's business.
    let longest = Duration::from_micros(stream.longest_us.load(Ordering::Relaxed));
    let slowest = changes.iter().max().unwrap();
    println!("longest pause {longest:?}, slowest change {slowest:?}");
}
