//! Frames come through, whole and unseen.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use kontena_lab::{BOUND, Netns, Switch, capture, count, counted, eventually, underlay, within};

use kontena_sleeve::Sleeve;

use crate::host::{Host, address, endpoint, key, mac, table, tunnel_address, world};

/// What is looked for on the way. It repeats, so that every packet holds it whole.
const MARKER: &[u8; 16] = b"kontena-in-clear";
const TRANSFERRED: usize = 64 << 20;

/// Sends so many bytes over TCP from one container to another; they must arrive as
/// they were sent.
pub fn transfer(from: &Netns, to: &Netns, host: u8, bytes: usize) {
    let at = SocketAddr::from((address(host), 7000));
    let listener = to.inside(|| TcpListener::bind(at).unwrap());
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut received = Vec::with_capacity(bytes);
            stream.read_to_end(&mut received).unwrap();
            received
        });
        let mut stream = from.inside(|| TcpStream::connect(at).unwrap());
        let sent = numbered(bytes);
        stream.write_all(&sent).unwrap();
        drop(stream);
        assert!(receiver.join().unwrap() == sent, "other bytes arrived");
    });
}

/// The marker, and a number so that no two namespaces are alike.
fn numbered(bytes: usize) -> Vec<u8> {
    let line = |number: u64| [&MARKER[..], &number.to_le_bytes()[..]].concat();
    (0..(bytes / 24) as u64).flat_map(line).collect()
}

#[test]
fn containers_reach_each_other_in_both_directions() {
    let (_switch, hosts, _sleeves) = world(3);
    for from in &hosts {
        for to in hosts.iter().filter(|to| to.number != from.number) {
            from.container.must_reach(address(to.number));
        }
    }
}

#[test]
fn a_stream_arrives_whole_and_no_packet_of_it_is_seen() {
    let (switch, hosts, sleeves) = world(2);
    let [a, b] = &hosts[..] else { unreachable!() };
    count(&switch.netns, "port1", "udp dport 6784");
    a.container.must_reach(address(2));
    let before: Vec<_> = sleeves.iter().map(Sleeve::drops).collect();
    let seen = capture(&switch.netns, "port1", MARKER, || {
        transfer(&a.container, &b.container, 2, TRANSFERRED);
        transfer(&b.container, &a.container, 1, TRANSFERRED);
    });
    assert!(
        seen.packets > 1000,
        "only {} packets were looked at",
        seen.packets
    );
    assert!(seen.marked.is_empty() && seen.lost == 0, "{seen:?}");
    assert_eq!(counted(&switch.netns), 0, "packets of VXLAN");
    // The kernel's queues may drop; the sleeves find nothing wrong.
    let after: Vec<_> = sleeves.iter().map(Sleeve::drops).collect();
    assert_eq!(after, before);
}

#[test]
fn the_capture_sees_what_is_in_clear() {
    let (switch, hosts, _sleeves) = world(2);
    let open = |host: &Host| {
        let at = (underlay(host.number), 7002);
        host.netns.inside(|| UdpSocket::bind(at).unwrap())
    };
    let (sender, receiver) = (open(&hosts[0]), open(&hosts[1]));
    receiver.set_read_timeout(Some(BOUND)).unwrap();
    let seen = capture(&switch.netns, "port1", MARKER, || {
        sender
            .send_to(&numbered(1200), (underlay(2), 7002))
            .unwrap();
        // What arrived has passed the switch.
        receiver.recv_from(&mut [0; 2048]).unwrap();
    });
    assert_eq!(seen.marked, [(7002, 1)].into());
}

#[test]
fn the_longest_frame_passes_and_a_longer_one_is_refused_on_the_spot() {
    let (_switch, hosts, _sleeves) = world(2);
    hosts[0].container.must_reach(address(2));
    let ping = |bytes: u32| {
        let line = format!("ping -n -M do -c 1 -W 2 -s {bytes} {}", address(2));
        hosts[0].container.output(&line).status.success()
    };
    assert!(ping(1370 - 28));
    assert!(!ping(1370 - 27));
}

#[test]
fn small_datagrams_arrive_one_by_one_in_order() {
    let (_switch, hosts, _sleeves) = world(2);
    let [a, b] = &hosts[..] else { unreachable!() };
    a.container.must_reach(address(2));
    let at = SocketAddr::from((address(2), 7001));
    let receiver = b.container.inside(|| UdpSocket::bind(at).unwrap());
    let bind = (address(1), 0);
    let sender = a.container.inside(|| UdpSocket::bind(bind).unwrap());
    // So few that no queue on the way overflows.
    for number in 0u32..200 {
        sender.send_to(&number.to_be_bytes(), at).unwrap();
    }
    let initiation_delay = Duration::from_secs(5);
    receiver.set_read_timeout(Some(initiation_delay)).unwrap();
    for number in 0u32..200 {
        let mut datagram = [0; 16];
        let (length, _) = receiver.recv_from(&mut datagram).unwrap();
        assert_eq!(datagram[..length], number.to_be_bytes());
    }
}

#[test]
fn datagrams_stay_in_order_while_lone_ones_come_in() {
    const SENT: u32 = 20_000;
    let (_switch, hosts, _sleeves) = world(2);
    let [a, b] = &hosts[..] else { unreachable!() };
    a.container.must_reach(address(2));
    let at = SocketAddr::from((address(2), 7003));
    let receiver = b.container.inside(|| UdpSocket::bind(at).unwrap());
    receiver.set_read_timeout(Some(BOUND)).unwrap();
    let back = SocketAddr::from((address(1), 7003));
    let sender = a.container.inside(|| UdpSocket::bind(back).unwrap());
    let last = thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut next, mut received) = (0, 0);
            while next < SENT {
                let mut datagram = [0; 4];
                receiver.recv(&mut datagram).unwrap();
                let number = u32::from_be_bytes(datagram);
                // Some may be lost.
                assert!(number >= next, "{number} after {next}");
                next = number + 1;
                received += 1;
                receiver.send_to(&datagram, back).unwrap();
            }
            received
        });
        for number in 0..SENT {
            sender.send_to(&number.to_be_bytes(), at).unwrap();
            if number % 8 == 0 {
                // Between two bursts what comes back comes alone.
                thread::yield_now();
            }
        }
        // The end must arrive.
        while !receiver.is_finished() {
            sender.send_to(&(SENT - 1).to_be_bytes(), at).unwrap();
            // Between two tries, so that they do not fill the queues that one has to pass; the
            // receiver has the bound.
            thread::sleep(Duration::from_millis(1));
        }
        receiver.join().unwrap()
    });
    assert!(last > SENT / 10, "only {last} arrived");
}

#[test]
fn a_peer_that_moved_is_found_where_it_speaks_from() {
    let (_switch, hosts, sleeves) = world(2);
    let [a, b] = &hosts[..] else { unreachable!() };
    a.container.must_reach(address(2));
    b.netns.run("ip addr add 198.51.100.77/24 dev eth0");
    b.netns.run("ip addr del 198.51.100.2/24 dev eth0");
    // Removing the first address took the second with it.
    b.netns.run("ip addr replace 198.51.100.77/24 dev eth0");
    b.container.must_reach(address(1));
    a.container.must_reach(address(2));
    let status = sleeves[0].status();
    assert_eq!(
        status[0].endpoint,
        Some("198.51.100.77:6783".parse().unwrap())
    );
}

#[test]
fn a_tunnel_tells_how_it_is() {
    let (_switch, hosts, sleeves) = world(2);
    hosts[0].container.must_reach(address(2));
    let status = &sleeves[0].status()[0];
    assert_eq!(
        (status.tunnel_address, status.endpoint),
        (tunnel_address(2), Some(endpoint(2)))
    );
    assert_eq!((status.own, status.key), (key(1).public(), key(2).public()));
    assert!(status.heard.unwrap().as_secs() < 60);
    assert!(status.last_handshake.unwrap().as_secs() < 60);
    assert!(status.sent_bytes > 0 && status.received_bytes > 0);
}

#[test]
fn who_has_nothing_to_say_gives_a_sign_of_life() {
    let (switch, hosts, _sleeves) = world(2);
    hosts[0].container.must_reach(address(2));
    // An empty packet is 32 octets (WireGuard whitepaper section 5.4.6). Who spoke last owes
    // no answer, so this is no acknowledgement. The kernel asks for the other's MAC once more
    // before that.
    count(&switch.netns, "port2", "udp dport 6783 udp length 40");
    within(Duration::from_secs(60), "a sign of life", || {
        let came = counted(&switch.netns);
        (came > 0).then_some(()).ok_or("none came".to_owned())
    });
}

#[test]
fn a_peer_whose_place_is_not_known_is_found_when_it_speaks() {
    let switch = Switch::start();
    let hosts: Vec<Host> = (1..=2).map(|number| Host::start(&switch, number)).collect();
    let sleeves: Vec<_> = hosts.iter().map(Host::sleeve).collect();
    let mut hidden = table(1, 1..=2);
    hidden.peers.get_mut(&tunnel_address(2)).unwrap().endpoint = None;
    sleeves[0].set_table(&hidden);
    assert!(hosts[0].container.ping(address(2)).is_err());
    assert_eq!(sleeves[0].status()[0].endpoint, None);
    sleeves[1].set_table(&table(2, 1..=2));
    hosts[1].container.must_reach(address(1));
    hosts[0].container.must_reach(address(2));
    assert_eq!(sleeves[0].status()[0].endpoint, Some(endpoint(2)));
}

#[test]
fn another_table_changes_whom_frames_go_to() {
    let (_switch, hosts, sleeves) = world(3);
    let [a, b, c] = &hosts[..] else {
        unreachable!()
    };
    for to in [b, c] {
        a.container.must_reach(address(to.number));
    }
    let handshake = sleeves[0].status()[1].last_handshake.unwrap();
    sleeves[0].set_table(&table(1, [1, 3]));
    assert!(a.container.ping(address(2)).is_err());
    a.container.must_reach(address(3));
    let kept = sleeves[0].status()[0].last_handshake.unwrap();
    assert!(kept >= handshake, "the other tunnel began anew");
    // A peer that comes back gets a new tunnel.
    sleeves[0].set_table(&table(1, 1..=3));
    a.container.must_reach(address(2));
    // A MAC that is behind another peer now.
    let mut moved = table(1, 1..=3);
    moved.owners.insert(mac(3), tunnel_address(2));
    sleeves[0].set_table(&moved);
    assert!(a.container.ping(address(3)).is_err());
}

#[test]
fn a_deleted_device_is_noticed() {
    let (_switch, hosts, sleeves) = world(1);
    assert!(sleeves[0].is_alive());
    hosts[0].netns.run("ip link del kontena-tap");
    let state = || Err("it is still alive".to_owned());
    eventually("the end is told", || {
        if sleeves[0].is_alive() {
            state()
        } else {
            Ok(())
        }
    });
}

#[test]
fn two_peers_with_one_key_are_one_peer() {
    let (_switch, hosts, sleeves) = world(2);
    let mut twice = table(1, 1..=2);
    twice
        .peers
        .insert(tunnel_address(3), twice.peers[&tunnel_address(2)].clone());
    twice.floods.insert(tunnel_address(3));
    sleeves[0].set_table(&twice);
    assert_eq!(sleeves[0].status().len(), 1);
    hosts[0].container.must_reach(address(2));
}

#[test]
fn nothing_comes_through_after_the_end_and_the_device_is_gone() {
    let (switch, hosts, mut sleeves) = world(2);
    hosts[0].container.must_reach(address(2));
    drop(sleeves.remove(0));
    let device = |host: &Host| {
        host.netns
            .output("ip link show kontena-tap")
            .status
            .success()
    };
    assert!(!device(&hosts[0]) && device(&hosts[1]));
    count(&switch.netns, "port1", "udp dport 6784");
    assert!(hosts[0].container.ping(address(2)).is_err());
    assert_eq!(counted(&switch.netns), 0);
    // The next one takes its netns.
    let again = hosts[0].sleeve();
    again.set_table(&table(1, 1..=2));
    eventually("a handshake", || {
        let status = again.status();
        status[0]
            .last_handshake
            .map(drop)
            .ok_or(format!("{status:?}"))
    });
    hosts[0].container.must_reach(address(2));
}
