//! The other kind of host: WireGuard with a kernel VXLAN device inside. A WireGuard
//! of another make in user space stands in for the kernel's, which not every
//! kernel has.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Child, Stdio};

use kontena_lab::{Switch, count, counted, eventually, send};
use kontena_schema::key::PublicKey;
use kontena_schema::mac::Mac;

use crate::host::{EXPERIMENT, Host, PORT, VNI, address, key, mac, table, tunnel_address};

/// `wireguard-go`, which makes its device when it starts.
struct WireGuard(Child);

impl Drop for WireGuard {
    fn drop(&mut self) {
        // Told to end, it takes its control socket with it.
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// Makes a host one of the other kind, with the first host as its peer.
fn wireguard(host: &Host) -> WireGuard {
    let netns = &host.netns;
    let number = host.number;
    // Control sockets lie in one directory for all namespaces.
    let device = format!("wg{:x}", std::process::id());
    let start = || {
        let mut program = netns.command(&format!("wireguard-go -f {device}"));
        let program = program.env("LOG_LEVEL", "error");
        WireGuard(program.spawn().expect("wireguard-go is installed"))
    };
    let mut child = start();
    let private = PublicKey(key(number).to_octets()).to_string();
    let public = key(1).public();
    let set = format!(
        "wg set {device} listen-port {PORT} private-key /dev/stdin peer {public} allowed-ips {}/32 endpoint 198.51.100.1:{PORT}",
        tunnel_address(1)
    );
    eventually("wireguard-go takes its settings", || {
        // It gives up where the machine lacks something for a moment.
        if let Ok(Some(_)) = child.0.try_wait() {
            child = start();
        }
        let mut wg = netns.command(&set);
        let wg = wg.stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut wg = wg.spawn().unwrap();
        wg.stdin
            .take()
            .unwrap()
            .write_all(private.as_bytes())
            .unwrap();
        let output = wg.wait_with_output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then_some(()).ok_or(words)
    });
    let own = tunnel_address(number);
    for line in [
        format!("ip addr add {own}/24 dev {device}"),
        format!("ip link set {device} mtu 1420 up"),
        format!("ip link add kontena-vx mtu 1370 type vxlan id {VNI} dstport 6784 nolearning"),
        "ip link set kontena-vx master kontena up".to_owned(),
        format!(
            "bridge fdb append 00:00:00:00:00:00 dev kontena-vx dst {} self permanent",
            tunnel_address(1)
        ),
        format!(
            "bridge fdb add {} dev kontena-vx dst {} self permanent",
            mac(1),
            tunnel_address(1)
        ),
    ] {
        netns.run(&line);
    }
    child
}

#[test]
fn a_sleeve_and_wireguard_with_a_kernel_vxlan_inside_talk_both_ways() {
    let switch = Switch::start();
    let hosts: Vec<Host> = (1..=2).map(|number| Host::start(&switch, number)).collect();
    let sleeve = hosts[0].sleeve();
    let _other = wireguard(&hosts[1]);
    sleeve.set_table(&table(1, 1..=2));
    hosts[0].container.must_reach(address(2));
    hosts[1].container.must_reach(address(1));
    crate::path::transfer(&hosts[0].container, &hosts[1].container, 2, 8 << 20);
    crate::path::transfer(&hosts[1].container, &hosts[0].container, 1, 8 << 20);
    let drops = sleeve.drops();
    assert_eq!(
        (drops.wrong_encapsulation, drops.wrong_sender),
        (0, 0),
        "{drops:?}"
    );
}

#[test]
fn arp_of_a_peer_is_dropped_whatever_it_says() {
    let switch = Switch::start();
    let hosts: Vec<Host> = (1..=2).map(|number| Host::start(&switch, number)).collect();
    let [a, b] = &hosts[..] else { unreachable!() };
    let sleeve = a.sleeve();
    // A sleeve would not send any.
    let _other = wireguard(b);
    sleeve.set_table(&table(1, 1..=3));
    a.container.must_reach(address(2));
    count(&a.container, "ethwe", "ether type { arp, 0x88b5 }");
    let arp = |to: [u8; 6], operation: u8, told: (Mac, Ipv4Addr)| {
        let ethernet = [&to[..], &mac(2).0, &[8, 6]].concat();
        let says = [0, 1, 8, 0, 6, 4, 0, operation];
        let (told, ip) = (told.0.0, told.1.octets());
        [&ethernet[..], &says, &told, &ip, &[0; 6], &ip, &[0; 18]].concat()
    };
    let tagged =
        |kind: [u8; 2], frame: &[u8]| [&frame[..12], &kind, &[0, 0], &frame[12..]].concat();
    let everybody = [0xff; 6];
    let messages = [
        // The second container says that it has the third's address, that the third has
        // its own, and what is true.
        arp(everybody, 1, (mac(2), address(3))),
        arp(everybody, 1, (mac(3), address(3))),
        arp(everybody, 1, (mac(2), address(2))),
        arp(mac(1).0, 2, (mac(2), address(3))),
        arp(mac(1).0, 2, (mac(2), address(2))),
        // In tags, of number 0, which kernels take off.
        tagged([0x81, 0x00], &arp(mac(1).0, 2, (mac(2), address(3)))),
        tagged([0x88, 0xa8], &arp(mac(1).0, 2, (mac(2), address(3)))),
        // It only says that it is ARP.
        [&everybody[..], &mac(2).0, &[8, 6], &[0xff; 46]].concat(),
    ];
    for (sent, message) in (1..).zip(&messages) {
        send(&b.container, "ethwe", message);
        eventually("the message is counted", || match sleeve.drops().arp_in {
            count if count == sent => Ok(()),
            count => Err(format!("{count} of {sent}")),
        });
    }
    assert_eq!(counted(&a.container), 0);
    let other = [&everybody[..], &mac(2).0, &EXPERIMENT, &[0; 46]].concat();
    send(&b.container, "ethwe", &other);
    eventually("what is no ARP arrives", || match counted(&a.container) {
        1 => Ok(()),
        count => Err(count.to_string()),
    });
}
