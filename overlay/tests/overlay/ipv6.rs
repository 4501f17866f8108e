//! What holds for containers over IPv4 holds where Docker's network has IPv6.

use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use kontena_overlay_lab::{
    Host, Netns, dropped, eventually, intent, remove_filter, trusting, world,
};
use kontena_schema::limits::{VXLAN_PORT, WIREGUARD_PORT};

use crate::isolation::dockers_network;

const IN_VAIN: Duration = Duration::from_millis(700);

/// The address of a host on the switch.
fn underlay(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into())
}

fn give_ipv6(host: &Host) {
    let address = underlay(host.node.number.get());
    host.netns
        .run(&format!("ip addr add {address}/64 dev eth0 nodad"));
}

/// Docker's network with IPv6, routed and not rewritten, as Docker has it by default.
fn dockers_ipv6(host: &Host, other: &Host) {
    dockers_network(host);
    let container = &host.containers[0].netns;
    host.netns
        .run("ip addr add fd00:172::1/64 dev docker0 nodad");
    host.netns.run("sysctl -qw net.ipv6.conf.all.forwarding=1");
    container.run("ip addr add fd00:172::2/64 dev eth0 nodad");
    container.run("ip route add default via fd00:172::1");
    let back = underlay(host.node.number.get());
    other
        .netns
        .run(&format!("ip route add fd00:172::/64 via {back}"));
}

fn connect(netns: &Netns, to: (Ipv6Addr, u16)) -> std::io::Result<TcpStream> {
    let to = SocketAddr::from(to);
    netns.inside(|| TcpStream::connect_timeout(&to, IN_VAIN))
}

fn must_connect(netns: &Netns, to: (Ipv6Addr, u16)) {
    eventually("it is answered", || {
        connect(netns, to).map(drop).map_err(|err| err.to_string())
    });
}

#[test]
fn overlay_keeps_containers_from_the_master_and_the_encrypted_paths_over_ipv6() {
    let (_switch, hosts) = world(2, &trusting());
    let [a, b] = &hosts[..] else { unreachable!() };
    hosts.iter().for_each(give_ipv6);
    dockers_ipv6(a, b);
    let container = &a.containers[0].netns;
    let listen = |port| b.netns.inside(|| TcpListener::bind(("::", port))).unwrap();
    let _listening = [listen(443), listen(80)];
    must_connect(container, (underlay(2), 443));
    let mut with_master = intent(&trusting(), a, &[a, b]);
    let masters = with_master.egress.masters.as_mut().unwrap();
    masters.insert((underlay(2), 443).into());
    a.must_reconcile(&with_master);
    assert_eq!(a.must_reconcile(&with_master).steps_applied, 0);
    connect(container, (underlay(2), 443)).unwrap_err();
    assert!(dropped(a, "dropped_master") > 0);
    must_connect(container, (underlay(2), 80));
    must_connect(&a.netns, (underlay(2), 443));

    let socket = container.inside(|| UdpSocket::bind("[::]:0")).unwrap();
    for (sent, port) in (1..).zip([WIREGUARD_PORT, VXLAN_PORT]) {
        socket.send_to(b"?", (underlay(2), port)).unwrap();
        eventually("it is dropped", || match dropped(a, "dropped_forward") {
            now if now == sent => Ok(()),
            now => Err(now.to_string()),
        });
    }
}

#[test]
fn overlay_is_no_way_to_a_host_over_ipv6() {
    let (_switch, hosts) = world(2, &trusting());
    let [a, b] = &hosts[..] else { unreachable!() };
    a.netns.run("ip addr add fd81::1/64 dev kontena nodad");
    let container = &a.containers[0].netns;
    container.run("ip addr add fd81::2/64 dev ethwe nodad");
    let own: Ipv6Addr = "fd81::1".parse().unwrap();
    let listener = a.netns.inside(|| TcpListener::bind((own, 8080)));
    let _listening = listener.unwrap();
    let dropped_as = |counter| {
        eventually(counter, || {
            connect(container, (own, 8080)).unwrap_err();
            match dropped(a, counter) {
                0 => Err("nothing was dropped".to_owned()),
                _ => Ok(()),
            }
        });
    };
    dropped_as("dropped_ethertype");
    // A container's port alone would do; the host relies on no port, of which other hosts
    // have some, too.
    a.netns.run("nft delete table netdev kontena_ports");
    dropped_as("dropped_host");
    container.must_reach(b.containers[0].address);
    remove_filter(a);
    must_connect(container, (own, 8080));
}
