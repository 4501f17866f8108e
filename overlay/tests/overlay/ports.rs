//! What passes a container's port of the bridge, and what does not.

use std::net::{Ipv4Addr, UdpSocket};

use kontena_schema::mac::Mac;

use kontena_overlay_lab::{
    BOUND, Container, Host, count, counted, grid, send, settle, trusting, world,
};

/// Frames for the MAC of somebody else, as the receiver's kernel sees them.
const FOR_ANOTHER: &str = "meta pkttype other";
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const NOBODY: Mac = Mac([0x02, 0, 0, 0, 0, 0x66]);

fn mac(container: &Container) -> Mac {
    container.attachment().mac
}

/// A UDP datagram without data, in a frame (RFC 791; a checksum of 0 is none, RFC 768).
fn datagram(ethernet: [Mac; 2], addresses: [Ipv4Addr; 2]) -> Vec<u8> {
    let [from, to] = ethernet;
    let mut ip = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    ip.extend(addresses.iter().flat_map(Ipv4Addr::octets));
    let words = ip
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let udp = [0, 9, 0, 9, 0, 8, 0, 0];
    [&to.0[..], &from.0, &[8, 0], &ip, &udp, &[0; 18]].concat()
}

/// What a container would send to this MAC.
fn honest(from: &Container, to: Mac) -> Vec<u8> {
    let nobody = Ipv4Addr::new(10, 81, 99, 9);
    datagram([mac(from), to], [from.address, nobody])
}

/// Also not while its agent restarts, when the device through which others are reached
/// is missing and the bridge knows nobody's MAC there.
#[test]
fn overlay_container_gets_no_frame_that_is_for_another() {
    let encrypting = grid(7, &[]);
    let (_switch, mut hosts) = world(2, &encrypting);
    hosts[0].add_container(11);
    let all: Vec<&Host> = hosts.iter().collect();
    settle(&encrypting, &all);
    let [a, b] = &hosts[..] else { unreachable!() };
    let [from, beside] = &a.containers[..] else {
        unreachable!()
    };
    let remote = &b.containers[0];
    from.netns.must_reach(remote.address);
    count(&beside.netns, "ethwe", FOR_ANOTHER);
    let to_others = || {
        for to in [NOBODY, mac(remote), Mac::of_node(b.node.address)] {
            send(&from.netns, "ethwe", &honest(from, to));
        }
        // An answer comes after what was sent before on the same way.
        from.netns.must_reach(beside.address);
    };
    to_others();
    a.stop_agent();
    to_others();
    b.stop_agent();
    a.start_agent();
    to_others();
    b.start_agent();
    settle(&encrypting, &all);
    to_others();
    from.netns.must_reach(remote.address);
    assert_eq!(counted(&beside.netns), 0);
    // Were it flooded, the counter would see it.
    a.netns
        .run("ip link set vethweb type bridge_slave flood on");
    to_others();
    assert_eq!(counted(&beside.netns), 1, "the one for nobody");
}

#[test]
fn overlay_carries_multicast_between_containers_of_one_host_and_of_two() {
    for grid in [trusting(), grid(7, &[])] {
        let (_switch, mut hosts) = world(2, &grid);
        hosts[0].add_container(11);
        settle(&grid, &hosts.iter().collect::<Vec<_>>());
        let [a, b] = &hosts[..] else { unreachable!() };
        let [from, beside] = &a.containers[..] else {
            unreachable!()
        };
        let listen = |container: &Container| {
            let bind = || UdpSocket::bind((GROUP, 7000));
            let socket = container.netns.inside(bind).unwrap();
            socket
                .join_multicast_v4(&GROUP, &container.address)
                .unwrap();
            socket.set_read_timeout(Some(BOUND)).unwrap();
            socket
        };
        let listeners = [beside, &b.containers[0]].map(listen);
        let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
        let sender = from.netns.inside(bind).unwrap();
        sender.send_to(b"to all", (GROUP, 7000)).unwrap();
        for listener in &listeners {
            let mut text = [0; 16];
            let (length, by) = listener.recv_from(&mut text).unwrap();
            assert_eq!(
                (&text[..length], by.ip()),
                (&b"to all"[..], from.address.into())
            );
        }
    }
}
