//! Two grids on one network that have everything alike but their keys: nothing crosses.
//!
//! Two Masters that know nothing of each other may give the same subnet, addresses, leases
//! and VNI, so MACs are alike too, and each anti_spoofing knows the other grid's frames as its own.
//! What keeps the grids apart is whose clear packets pass, and who encrypts.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread::JoinHandle;

use kontena_lab::{Seen, capture, send};
use kontena_schema::agent::GridSettings;
use kontena_schema::ids::{NodeId, NodeNumber};
use kontena_schema::limits::{VXLAN_PORT, WIREGUARD_PORT};
use kontena_schema::mac::Mac;

use crate::encrypted::encryption;
use crate::every_packet::MARKER;
use crate::reach::everyone_reaches_everyone;
use kontena_overlay_lab::{
    BOUND, Container, Host, Netns, Switch, count, counted, eventually, in_clear, pass, settle,
    trusting, underlay,
};

const NAMES: [&str; 2] = ["a", "b"];
/// How often a frame is sent.
const TIMES: u64 = 10;
const EVERYBODY: [u8; 6] = [0xff; 6];
/// A type of frame for local experiments (IEEE 802).
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

/// A host of one of the grids: the first has 198.51.100.1 and 2, the second 3 and 4. Each has
/// two containers; the second one of a grid's second host is one that the other grid has not.
fn host_of(switch: &Switch, grid: u8, number: u8) -> Host {
    let mut host = Host::start(switch, 2 * grid + number);
    host.node.id = NodeId(number.into());
    host.node.name = format!("{}-{number}", NAMES[usize::from(grid)]);
    host.node.number = NodeNumber::try_from(number).unwrap();
    host.node.address = Ipv4Addr::new(10, 81, 0, number);
    host.add_container(number);
    host.add_container(if number == 2 { 11 + grid } else { 21 });
    host
}

fn hosts(switch: &Switch) -> [Vec<Host>; 2] {
    [0, 1].map(|grid| [1, 2].map(|number| host_of(switch, grid, number)).into())
}

/// Both grids, `settle`d.
fn two_grids(settings: &GridSettings) -> (Switch, [Vec<Host>; 2]) {
    let switch = Switch::start();
    let grids = hosts(&switch);
    for grid in &grids {
        settle(settings, &grid.iter().collect::<Vec<_>>());
    }
    let macs = grids.each_ref().map(|grid| attached_mac(&grid[0]));
    assert_eq!(macs[0], macs[1], "nothing tells the grids' frames apart");
    (switch, grids)
}

fn attached_mac(host: &Host) -> Mac {
    host.containers[0].attachment().mac
}

/// How much one host dropped, by one counter of its statistics.
fn measured(host: &Host, counter: &str) -> u64 {
    host.statistics().drops[counter]
}

/// Waits until so many were dropped.
fn until_dropped(host: &Host, counter: &str, count: u64) {
    eventually(counter, || match measured(host, counter) {
        now if now >= count => Ok(()),
        now => Err(format!("{now} of {count}")),
    });
}

/// Says its name to whoever asks.
struct Herald {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
    at: SocketAddrV4,
}

impl Herald {
    fn start(netns: &Netns, address: Ipv4Addr, name: &str) -> Self {
        const PORT: u16 = 7000;
        let at = SocketAddrV4::new(address, PORT);
        let listener = netns.inside(|| TcpListener::bind(at)).unwrap();
        let (accepting, name) = (listener.try_clone().unwrap(), name.to_owned());
        let thread = std::thread::spawn(move || {
            for asked in accepting.incoming().map_while(Result::ok) {
                // Who asked may be gone.
                let _ = (&asked).write_all(name.as_bytes());
                let _ = asked.shutdown(Shutdown::Write);
            }
        });
        let thread = Some(thread);
        Self {
            listener,
            thread,
            at,
        }
    }
}

impl Drop for Herald {
    fn drop(&mut self) {
        // Whoever waits for the next to ask is woken.
        // SAFETY: the socket is open as long as the listener is.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        let _ = self.thread.take().unwrap().join();
    }
}

/// What is advertised at an address, asked so often.
fn ask(from: &Netns, to: SocketAddrV4, times: usize) -> Vec<String> {
    let once = |_| {
        let mut stream = TcpStream::connect_timeout(&to.into(), BOUND).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        let mut advertised = String::new();
        stream.read_to_string(&mut advertised).unwrap();
        advertised
    };
    from.inside(|| (0..times).map(once).collect())
}

/// The namespaces of a grid's hosts and containers, with their overlay addresses.
fn namespaces(grid: &[Host]) -> Vec<(&Netns, Ipv4Addr)> {
    let containers = grid.iter().flat_map(|host| &host.containers);
    let containers = containers.map(|container| (&container.netns, container.address));
    let hosts = grid.iter().map(|host| (&host.netns, host.node.address));
    hosts.chain(containers).collect()
}

/// Everybody asks everybody of the same grid, in both grids at once, and nothing of the
/// tunnels goes from the hosts of one to those of the other.
fn answers_come_from_the_own_grid(settings: &GridSettings) {
    const ASKED: usize = 50;
    let (_switch, grids) = two_grids(settings);
    for (grid, of_other) in grids.iter().zip([[3, 4], [1, 2]]) {
        let [first, second] = of_other.map(underlay);
        let foreign = format!("ip saddr {{ {first}, {second} }} udp dport {{ 6783, 6784 }}");
        for host in grid {
            count(&host.netns, "eth0", &foreign);
        }
    }
    let named = |(grid, name): (&Vec<Host>, &str)| -> Vec<Herald> {
        let herald = |(netns, address)| Herald::start(netns, address, name);
        namespaces(grid).into_iter().map(herald).collect()
    };
    let heralds: Vec<_> = grids.iter().zip(NAMES).map(named).collect();
    let everybody_asks = |grid: &[Host], heralds: &[Herald], name: &str| {
        for (from, own) in namespaces(grid) {
            for Herald { at, .. } in heralds.iter().filter(|herald| *herald.at.ip() != own) {
                from.must_reach(*at.ip());
                assert_eq!(ask(from, *at, ASKED), vec![name; ASKED], "{own} asks {at}");
            }
        }
    };
    std::thread::scope(|scope| {
        for ((grid, heralds), name) in grids.iter().zip(&heralds).zip(NAMES) {
            scope.spawn(move || everybody_asks(grid, heralds, name));
        }
    });
    for host in grids.iter().flatten() {
        assert_eq!(counted(&host.netns), 0, "{}", host.node.name);
    }
    // The counters see what there is to see.
    for [from, to] in [[3, 1], [1, 3]] {
        let host = |number: u8| &grids[usize::from(number / 3)][0].netns;
        let socket = host(from).inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket
            .send_to(b"?", (underlay(to), WIREGUARD_PORT))
            .unwrap();
        eventually("a packet", || match counted(host(to)) {
            1 => Ok(()),
            other => Err(other.to_string()),
        });
    }
}

#[test]
fn overlay_in_clear_answers_from_its_own_grid_only() {
    answers_come_from_the_own_grid(&trusting());
}

#[test]
fn overlay_encrypted_answers_from_its_own_grid_only() {
    answers_come_from_the_own_grid(&encryption());
}

/// How many packets with the marker each of these containers sees meanwhile.
fn watch(containers: &[&Container], work: &mut dyn FnMut()) -> Vec<u64> {
    let [container, others @ ..] = containers else {
        work();
        return Vec::new();
    };
    let mut seen_by_others = Vec::new();
    let Seen { marked, lost, .. } = capture(&container.netns, "ethwe", MARKER, || {
        seen_by_others = watch(others, work);
    });
    assert_eq!(lost, 0, "not every packet was looked at");
    let mut seen = vec![marked.values().sum()];
    seen.append(&mut seen_by_others);
    seen
}

/// A frame for everybody, and a question of ARP for an address; both with the marker.
fn for_everybody(from: &Container, asked: Ipv4Addr) -> [Vec<u8>; 2] {
    let mac = from.attachment().mac.0;
    let head = |kind: [u8; 2]| [&EVERYBODY[..], &mac, &kind].concat();
    // RFC 826: Ethernet, IPv4, a request.
    let request = [0, 1, 8, 0, 6, 4, 0, 1];
    let (own, asked) = (from.address.octets(), asked.octets());
    let who_has = [&request[..], &mac, &own, &[0; 6], &asked].concat();
    [
        [&head(EXPERIMENT)[..], MARKER, &[0; 30]].concat(),
        [&head([8, 6])[..], &who_has, MARKER, &[0; 2]].concat(),
    ]
}

/// Sends to everybody of a grid what names a container that only the other has. How many
/// were seen by a container of the same host, by one of the same grid's other host, and by
/// all of the other grid's.
fn tell_everybody([own, other]: [&[Host]; 2]) -> ([u64; 2], Vec<u64>) {
    let [from, beside] = &own[0].containers[..] else {
        unreachable!()
    };
    let to = &own[1].containers[0];
    let asked = other[1].containers[1].address;
    let watchers = other.iter().flat_map(|host| &host.containers);
    let watchers: Vec<_> = [beside, to].into_iter().chain(watchers).collect();
    let mut seen = watch(&watchers, &mut || {
        for frame in for_everybody(from, asked) {
            (0..TIMES).for_each(|_| send(&from.netns, "ethwe", &frame));
        }
        // These come after them, wherever they go.
        from.netns.must_reach(to.address);
        for host in other {
            for container in &host.containers {
                other[0].containers[0].netns.must_reach(container.address);
                other[1].netns.must_reach(container.address);
            }
        }
    });
    ([seen.remove(0), seen.remove(0)], seen)
}

/// Takes away what keeps another grid's clear packets out of a host. Where it takes none
/// from anybody, its anti_spoofing knows no sender, so `nothing` passes without the filter either.
fn open(settings: &GridSettings, host: &Host, to: Ipv4Addr, nothing: impl FnOnce()) {
    let element = format!("nft add element inet kontena fast_peers {{ {to} }}");
    host.netns.run(&element);
    if settings.trusted_subnets.is_empty() {
        let before = measured(host, "dropped_sender");
        nothing();
        assert!(measured(host, "dropped_sender") - before >= TIMES);
        host.netns.run("nft delete table netdev kontena");
    }
}

/// Broadcasts stay in their grid. Where one table leads astray, the filter of the sender
/// holds; where that fails too, the filter of the receiver.
fn broadcasts_stay_in_their_grid(settings: &GridSettings) {
    // ARP comes no further than its host.
    const OWN: [u64; 2] = [2 * TIMES, TIMES];
    let (_switch, grids) = two_grids(settings);
    let [a, b] = grids.each_ref().map(Vec::as_slice);
    for [own, other] in [[a, b], [b, a]] {
        assert_eq!(tell_everybody([own, other]), (OWN, vec![0; 4]));
        let from = &own[0].containers[0].netns;
        let only_there = other[1].containers[1].address;
        other[0].containers[0].netns.must_reach(only_there);
        assert!(from.ping(only_there).is_err());
    }

    let [from, to] = [&a[0], &b[1]];
    from.netns
        .run("bridge fdb append 00:00:00:00:00:00 dev kontena-vx dst 198.51.100.4");
    let before = measured(from, "dropped_out");
    assert_eq!(tell_everybody([a, b]), (OWN, vec![0; 4]));
    assert!(measured(from, "dropped_out") - before >= TIMES);

    from.netns
        .run("nft add element inet kontena fast_peers { 198.51.100.4 }");
    let before = measured(to, "dropped_in");
    assert_eq!(tell_everybody([a, b]), (OWN, vec![0; 4]));
    assert!(measured(to, "dropped_in") - before >= TIMES);

    // Without any of it they would be there: the watchers can see them.
    open(settings, to, underlay(1), || {
        assert_eq!(tell_everybody([a, b]), (OWN, vec![0; 4]));
    });
    assert_eq!(tell_everybody([a, b]), (OWN, vec![0, 0, TIMES, TIMES]));
}

#[test]
fn overlay_in_clear_keeps_broadcasts_and_arp_in_their_grid() {
    broadcasts_stay_in_their_grid(&trusting());
}

#[test]
fn overlay_encrypted_keeps_broadcasts_and_arp_in_their_grid() {
    broadcasts_stay_in_their_grid(&encryption());
}

/// A frame with the marker from the grid's second node to its first container, as its tunnel
/// would put it into a packet.
fn forged(grid: &[Host], vni: u32) -> Vec<u8> {
    let from = Mac::of_node(grid[1].node.address).0;
    let head = [&attached_mac(&grid[0]).0[..], &from, &EXPERIMENT].concat();
    in_clear(vni, &[&head[..], MARKER, &[0; 30]].concat())
}

/// A host of the second grid sends to one of the first what that grid's own would send.
fn forged_packets_are_dropped(settings: &GridSettings) {
    let (_switch, grids) = two_grids(settings);
    let [a, b] = &grids;
    let (forger, victim) = (&b[0], &a[0]);
    let packet = forged(a, settings.vni);
    let socket = forger.netns.inside(|| UdpSocket::bind("0.0.0.0:0"));
    let socket = socket.unwrap();
    let forge = || socket.send_to(&packet, (underlay(1), VXLAN_PORT));
    let watchers: Vec<_> = a.iter().flat_map(|host| &host.containers).collect();
    let reach = || victim.containers[0].netns.must_reach(a[1].node.address);

    let before = [
        measured(forger, "dropped_out"),
        measured(victim, "dropped_in"),
    ];
    let seen = watch(&watchers, &mut || {
        // Its own filter stops it.
        let _ = forge();
        until_dropped(forger, "dropped_out", before[0] + 1);
        forger.netns.run("nft delete table inet kontena");
        for _ in 0..TIMES {
            forge().unwrap();
        }
        until_dropped(victim, "dropped_in", before[1] + TIMES);
        reach();
    });
    assert_eq!(seen, [0; 4]);
    let dropped = measured(victim, "dropped_in") - before[1];
    assert_eq!(dropped, TIMES, "each was counted once");
    let by_guard = measured(victim, "dropped_sender");
    assert_eq!(by_guard, 0, "nothing came as far as the anti_spoofing");

    // Were the forger one of the grid's, they would have come in.
    let watch_forged = || {
        watch(&watchers, &mut || {
            for _ in 0..TIMES {
                forge().unwrap();
            }
            reach();
        })
    };
    open(settings, victim, underlay(3), || {
        assert_eq!(watch_forged(), [0; 4]);
    });
    assert_eq!(watch_forged(), [TIMES, 0, 0, 0]);
}

#[test]
fn overlay_in_clear_drops_and_counts_what_another_grid_forges() {
    forged_packets_are_dropped(&trusting());
}

#[test]
fn overlay_encrypted_drops_and_counts_what_another_grid_forges() {
    forged_packets_are_dropped(&encryption());
}

#[test]
fn overlay_does_not_take_what_another_grid_encrypted() {
    let (_switch, grids) = two_grids(&encryption());
    let [a, b] = &grids;
    let (from, victim) = (&b[0].containers[0], &a[0]);
    let [frame, _] = for_everybody(from, from.address);
    let send = || (0..TIMES).for_each(|_| send(&from.netns, "ethwe", &frame));
    let in_own = [&b[1].containers[0]];
    let seen = watch(&in_own, &mut || {
        send();
        from.netns.must_reach(in_own[0].address);
    });
    assert_eq!(seen, [TIMES]);

    // What it encrypts for its peer goes to the other grid's host with the same number.
    let before = measured(victim, "encrypted_not_authenticated");
    let watchers = [victim, &a[1], &b[1]].map(|host| &host.containers[0]);
    let seen = watch(&watchers, &mut || {
        b[0].netns.run("nft add table ip astray");
        b[0].netns
            .run("nft add chain ip astray out { type route hook output priority 0 ; }");
        b[0].netns.run(
            "nft add rule ip astray out ip daddr 198.51.100.4 udp dport 6783 \
             ip daddr set 198.51.100.1",
        );
        send();
        until_dropped(victim, "encrypted_not_authenticated", before + TIMES);
        victim.containers[0]
            .netns
            .must_reach(a[1].containers[0].address);
    });
    assert_eq!(seen, [0; 3]);
    b[0].netns.run("nft delete table ip astray");
    grids
        .iter()
        .for_each(|grid| everyone_reaches_everyone(grid));
}

#[test]
fn overlay_gives_no_session_to_another_grid_that_knows_its_key() {
    let switch = Switch::start();
    let [a, mut b] = hosts(&switch);
    settle(&encryption(), &a.iter().collect::<Vec<_>>());
    let before = measured(&a[0], "encrypted_not_authenticated");
    // The second grid has its second node where the first grid's first is.
    b[1].node.site = a[0].node.site.clone();
    b[1].node.keys = a[0].node.keys;
    pass(&encryption(), &b[0], &b.iter().collect::<Vec<_>>());
    until_dropped(&a[0], "encrypted_not_authenticated", before + 1);
    let health = b[0].health().remove(&b[1].node.id).unwrap();
    assert_eq!(health.tunnel.key, a[0].node.keys.unwrap().current);
    assert_eq!(health.tunnel.last_handshake, None);
    assert!(b[0].peers().values().all(|pair| !pair.alive));
    everyone_reaches_everyone(&a);
}
