//! Two grids on one network that differ only in their keys: nothing crosses.
//!
//! Two Masters that know nothing of each other may assign the same subnet, addresses, leases and
//! VNI, so MACs are the same too, and each anti-spoofing filter accepts the other grid's frames.
//! What keeps the grids apart is the packet filter, and the keys.

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
use crate::ports::datagram;
use crate::reach::everyone_reaches_everyone;
use kontena_overlay_lab::{
    BOUND, Container, Host, Netns, Switch, converge, count, counted, eventually, in_clear, pass,
    trusting, underlay,
};

const NAMES: [&str; 2] = ["a", "b"];
/// Where a grid says its name.
const HERALD_PORT: u16 = 7000;
/// How often a frame is sent.
const TIMES: u64 = 10;
const BROADCAST: [u8; 6] = [0xff; 6];
/// The Ethertype for local experiments (IEEE 802).
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

/// A host of one of the grids: the first has 198.51.100.1 and 2, the second 3 and 4. Each has two
/// containers; the second container of a grid's second host does not exist in the other grid.
fn host_of(switch: &Switch, grid: u8, number: u8) -> Host {
    // The tests open packet filters by hand.
    let mut host = Host::start_without_live_table(switch, 2 * grid + number);
    host.node.id = NodeId(number.into());
    host.node.name = format!("{}-{number}", NAMES[usize::from(grid)]);
    host.node.number = NodeNumber::try_from(number).unwrap();
    host.node.address = Ipv4Addr::new(10, 81, 0, number);
    host.services.tcp.insert(HERALD_PORT);
    host.add_container(number);
    host.add_container(if number == 2 { 11 + grid } else { 21 });
    host
}

fn hosts(switch: &Switch) -> [Vec<Host>; 2] {
    [0, 1].map(|grid| [1, 2].map(|number| host_of(switch, grid, number)).into())
}

/// Both grids, converged.
fn two_grids(settings: &GridSettings) -> (Switch, [Vec<Host>; 2]) {
    let switch = Switch::start();
    let grids = hosts(&switch);
    for grid in &grids {
        converge(settings, &grid.iter().collect::<Vec<_>>());
    }
    let macs = grids.each_ref().map(|grid| attached_mac(&grid[0]));
    assert_eq!(macs[0], macs[1], "the grids' frames are the same");
    (switch, grids)
}

fn attached_mac(host: &Host) -> Mac {
    host.containers[0].attachment().mac
}

/// One drop counter of a host.
fn drop_counter(host: &Host, counter: &str) -> u64 {
    host.statistics().drops[counter]
}

/// Waits until the counter is so high.
fn until_dropped(host: &Host, counter: &str, count: u64) {
    eventually(counter, || match drop_counter(host, counter) {
        now if now >= count => Ok(()),
        now => Err(format!("{now} of {count}")),
    });
}

/// A server that sends its name to every client.
struct NameServer {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
    at: SocketAddrV4,
}

impl NameServer {
    fn start(netns: &Netns, address: Ipv4Addr, name: &str) -> Self {
        let at = SocketAddrV4::new(address, HERALD_PORT);
        let listener = netns.inside(|| TcpListener::bind(at)).unwrap();
        let (accepting, name) = (listener.try_clone().unwrap(), name.to_owned());
        let thread = std::thread::spawn(move || {
            for client in accepting.incoming().map_while(Result::ok) {
                // The client may be gone.
                let _ = (&client).write_all(name.as_bytes());
                let _ = client.shutdown(Shutdown::Write);
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

impl Drop for NameServer {
    fn drop(&mut self) {
        // Ends the thread's `accept`.
        // SAFETY: the socket is open as long as the listener is.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        let _ = self.thread.take().unwrap().join();
    }
}

/// The names that a server sends, for so many connections.
fn names(from: &Netns, to: SocketAddrV4, times: usize) -> Vec<String> {
    let once = |_| {
        let mut stream = TcpStream::connect_timeout(&to.into(), BOUND).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        let mut name = String::new();
        stream.read_to_string(&mut name).unwrap();
        name
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

/// Every namespace connects to all others of the same grid, in both grids at once, and no tunnel
/// packet goes from the hosts of one grid to those of the other.
fn answers_come_from_the_own_grid(settings: &GridSettings) {
    const TIMES_ASKED: usize = 50;
    let (_switch, grids) = two_grids(settings);
    for (grid, of_other) in grids.iter().zip([[3, 4], [1, 2]]) {
        let [first, second] = of_other.map(underlay);
        let foreign = format!("ip saddr {{ {first}, {second} }} udp dport {{ 6783, 6784 }}");
        for host in grid {
            count(&host.netns, "eth0", &foreign);
        }
    }
    let start = |(grid, name): (&Vec<Host>, &str)| -> Vec<NameServer> {
        let server = |(netns, address)| NameServer::start(netns, address, name);
        namespaces(grid).into_iter().map(server).collect()
    };
    let servers: Vec<_> = grids.iter().zip(NAMES).map(start).collect();
    let connect_all = |grid: &[Host], servers: &[NameServer], name: &str| {
        for (from, own) in namespaces(grid) {
            for NameServer { at, .. } in servers.iter().filter(|server| *server.at.ip() != own) {
                from.must_reach(*at.ip());
                let received = names(from, *at, TIMES_ASKED);
                assert_eq!(received, vec![name; TIMES_ASKED], "{own} to {at}");
            }
        }
    };
    std::thread::scope(|scope| {
        for ((grid, servers), name) in grids.iter().zip(&servers).zip(NAMES) {
            scope.spawn(move || connect_all(grid, servers, name));
        }
    });
    for host in grids.iter().flatten() {
        assert_eq!(counted(&host.netns), 0, "{}", host.node.name);
    }
    // The counters would see such packets.
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

/// How many packets with the marker each of these containers receives meanwhile.
fn watch(containers: &[&Container], work: &mut dyn FnMut()) -> Vec<u64> {
    let [container, others @ ..] = containers else {
        work();
        return Vec::new();
    };
    let mut seen_by_others = Vec::new();
    let Seen { marked, lost, .. } = capture(&container.netns, "ethwe", MARKER, || {
        seen_by_others = watch(others, work);
    });
    assert_eq!(lost, 0, "the capture missed packets");
    let mut seen = vec![marked.values().sum()];
    seen.append(&mut seen_by_others);
    seen
}

/// A broadcast frame, and an ARP request for an address; both with the marker.
fn broadcasts(from: &Container, asked: Ipv4Addr) -> [Vec<u8>; 2] {
    let mac = from.attachment().mac;
    let addresses = [from.address, Ipv4Addr::BROADCAST];
    let to_all = datagram([mac, Mac(BROADCAST)], addresses, MARKER);
    let mac = mac.0;
    let arp = [&BROADCAST[..], &mac, &[8, 6]].concat();
    // RFC 826: Ethernet, IPv4, a request.
    let request = [0, 1, 8, 0, 6, 4, 0, 1];
    let (own, asked) = (from.address.octets(), asked.octets());
    let who_has = [&request[..], &mac, &own, &[0; 6], &asked].concat();
    [to_all, [&arp[..], &who_has, MARKER, &[0; 2]].concat()]
}

/// Broadcasts within a grid, with a request for a container that only the other grid has. Returns
/// how many were received by a container of the same host, by one of the grid's other host, and by
/// each of the other grid's.
fn broadcast([own, other]: [&[Host]; 2]) -> ([u64; 2], Vec<u64>) {
    let [from, beside] = &own[0].containers[..] else {
        unreachable!()
    };
    let to = &own[1].containers[0];
    let asked = other[1].containers[1].address;
    let watchers = other.iter().flat_map(|host| &host.containers);
    let watchers: Vec<_> = [beside, to].into_iter().chain(watchers).collect();
    let mut seen = watch(&watchers, &mut || {
        for frame in broadcasts(from, asked) {
            (0..TIMES).for_each(|_| send(&from.netns, "ethwe", &frame));
        }
        // These are sent after them, on every path.
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

/// Removes what keeps another grid's clear packets out of a host. If the host accepts none at all,
/// its anti-spoofing filter has no senders, so `nothing` arrives without the packet filter either.
fn open(settings: &GridSettings, host: &Host, to: Ipv4Addr, nothing: impl FnOnce()) {
    let accept = format!("nft insert rule inet kontena input_vxlan ip saddr {to} accept");
    host.netns.run(&accept);
    if settings.trusted_subnets.is_empty() {
        let before = drop_counter(host, "dropped_sender");
        nothing();
        assert!(drop_counter(host, "dropped_sender") - before >= TIMES);
        host.netns.run("nft delete table netdev kontena");
    }
}

/// Broadcasts stay in their grid. With a wrong FDB entry, the sender's filter drops them; if that
/// fails too, the receiver's.
fn broadcasts_stay_in_their_grid(settings: &GridSettings) {
    // ARP does not leave its host.
    const OWN: [u64; 2] = [2 * TIMES, TIMES];
    let (_switch, grids) = two_grids(settings);
    let [a, b] = grids.each_ref().map(Vec::as_slice);
    for [own, other] in [[a, b], [b, a]] {
        assert_eq!(broadcast([own, other]), (OWN, vec![0; 4]));
        let from = &own[0].containers[0].netns;
        let only_there = other[1].containers[1].address;
        other[0].containers[0].netns.must_reach(only_there);
        assert!(from.ping(only_there).is_err());
    }

    let [from, to] = [&a[0], &b[1]];
    from.netns
        .run("bridge fdb append 00:00:00:00:00:00 dev kontena-vx dst 198.51.100.4");
    let before = drop_counter(from, "dropped_out");
    assert_eq!(broadcast([a, b]), (OWN, vec![0; 4]));
    assert!(drop_counter(from, "dropped_out") - before >= TIMES);

    from.netns
        .run("nft insert rule inet kontena output_vxlan ip daddr 198.51.100.4 accept");
    let before = drop_counter(to, "dropped_in");
    assert_eq!(broadcast([a, b]), (OWN, vec![0; 4]));
    assert!(drop_counter(to, "dropped_in") - before >= TIMES);

    // Without any filter they arrive: the captures would see them.
    open(settings, to, underlay(1), || {
        assert_eq!(broadcast([a, b]), (OWN, vec![0; 4]));
    });
    assert_eq!(broadcast([a, b]), (OWN, vec![0, 0, TIMES, TIMES]));
}

#[test]
fn overlay_in_clear_keeps_broadcasts_and_arp_in_their_grid() {
    broadcasts_stay_in_their_grid(&trusting());
}

#[test]
fn overlay_encrypted_keeps_broadcasts_and_arp_in_their_grid() {
    broadcasts_stay_in_their_grid(&encryption());
}

/// A frame with the marker from the grid's second node to its first container, as a VXLAN device
/// would send it.
fn forged(grid: &[Host], vni: u32) -> Vec<u8> {
    let from = Mac::of_node(grid[1].node.address).0;
    let head = [&attached_mac(&grid[0]).0[..], &from, &EXPERIMENT].concat();
    in_clear(vni, &[&head[..], MARKER, &[0; 30]].concat())
}

/// A host of the second grid sends what a host of the first grid would send.
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
        drop_counter(forger, "dropped_out"),
        drop_counter(victim, "dropped_in"),
    ];
    let seen = watch(&watchers, &mut || {
        // Its own filter drops it.
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
    let dropped = drop_counter(victim, "dropped_in") - before[1];
    assert_eq!(dropped, TIMES, "each was counted once");
    let by_anti_spoofing = drop_counter(victim, "dropped_sender");
    assert_eq!(by_anti_spoofing, 0, "none reached the anti-spoofing filter");

    // From a host of the grid they would be accepted.
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
fn overlay_in_clear_drops_and_counts_packets_forged_by_another_grid() {
    forged_packets_are_dropped(&trusting());
}

#[test]
fn overlay_encrypted_drops_and_counts_packets_forged_by_another_grid() {
    forged_packets_are_dropped(&encryption());
}

#[test]
fn overlay_drops_packets_that_another_grid_encrypted() {
    let (_switch, grids) = two_grids(&encryption());
    let [a, b] = &grids;
    let (from, victim) = (&b[0].containers[0], &a[0]);
    let [frame, _] = broadcasts(from, from.address);
    let send = || (0..TIMES).for_each(|_| send(&from.netns, "ethwe", &frame));
    let in_own = [&b[1].containers[0]];
    let seen = watch(&in_own, &mut || {
        send();
        from.netns.must_reach(in_own[0].address);
    });
    assert_eq!(seen, [TIMES]);

    // Its encrypted packets are redirected to the other grid's host with the same number.
    let before = drop_counter(victim, "encrypted_not_authenticated");
    let watchers = [victim, &a[1], &b[1]].map(|host| &host.containers[0]);
    let seen = watch(&watchers, &mut || {
        b[0].netns.run("nft add table ip detour");
        b[0].netns
            .run("nft add chain ip detour out { type route hook output priority 0 ; }");
        b[0].netns.run(
            "nft add rule ip detour out ip daddr 198.51.100.4 udp dport 6783 \
             ip daddr set 198.51.100.1",
        );
        send();
        until_dropped(victim, "encrypted_not_authenticated", before + TIMES);
        victim.containers[0]
            .netns
            .must_reach(a[1].containers[0].address);
    });
    assert_eq!(seen, [0; 3]);
    b[0].netns.run("nft delete table ip detour");
    grids
        .iter()
        .for_each(|grid| everyone_reaches_everyone(grid));
}

#[test]
fn overlay_gives_no_session_to_another_grid_that_knows_its_key() {
    let switch = Switch::start();
    let [a, mut b] = hosts(&switch);
    converge(&encryption(), &a.iter().collect::<Vec<_>>());
    let before = drop_counter(&a[0], "encrypted_not_authenticated");
    // The second grid's directory has its second node at the address of the first grid's first.
    b[1].node.site = a[0].node.site.clone();
    b[1].node.keys = a[0].node.keys;
    pass(&encryption(), &b[0], &b.iter().collect::<Vec<_>>());
    until_dropped(&a[0], "encrypted_not_authenticated", before + 1);
    let health = b[0].health().remove(&b[1].node.id).unwrap();
    assert_eq!(health.tunnel.key, a[0].node.keys.unwrap().current);
    assert_eq!(health.tunnel.last_handshake, None);
    assert!(b[0].peers().values().all(|peer| !peer.alive));
    everyone_reaches_everyone(&a);
}
