//! Hosts with a bridge, a container and an encrypted path.

use std::net::{Ipv4Addr, SocketAddr};

use kontena_lab::{Keeper, Netns, Switch, underlay};
use kontena_schema::mac::Mac;
use kontena_sleeve::{Message, Peer, PrivateKey, Settings, Sleeve, Table};

pub const PORT: u16 = 6783;
pub const VNI: u32 = 7;
/// The Ethertype of local experiments (IEEE 802): no filter of IP looks at it.
pub const EXPERIMENT: [u8; 2] = [0x88, 0xb5];
const MTU: u32 = 1370;
/// The highest number of a host.
const HOSTS: u8 = 9;

/// A host with one container.
pub struct Host {
    pub number: u8,
    pub netns: Netns,
    pub container: Netns,
    keepers: [Keeper; 2],
}

impl Host {
    pub fn start(switch: &Switch, number: u8) -> Self {
        let (host, netns) = Keeper::start();
        let (inside, container) = Keeper::start();
        netns.inside(no_ipv6);
        container.inside(no_ipv6);
        switch.plug(&netns, number);
        netns.run("ip link add kontena type bridge mcast_snooping 0");
        netns.run("ip link set kontena up");
        let (task, own_mac) = (container.task(), mac(number));
        netns.run(&format!(
            "ip link add veth mtu {MTU} type veth peer name ethwe netns {task} mtu {MTU} address {own_mac}"
        ));
        netns.run("ip link set veth master kontena up");
        container.run("ip link set ethwe up");
        let own_address = address(number);
        container.run(&format!("ip addr add {own_address}/17 dev ethwe"));
        // No ARP comes through a sleeve: here the containers know each other, and with
        // an agent the bridge answers them.
        for other in (1..=HOSTS).filter(|other| *other != number) {
            let (address, mac) = (address(other), mac(other));
            container.run(&format!("ip neigh add {address} lladdr {mac} dev ethwe"));
        }
        Self {
            number,
            netns,
            container,
            keepers: [host, inside],
        }
    }

    /// Starts the host's sleeve, with its device on the bridge.
    pub fn sleeve(&self) -> Sleeve {
        self.sleeve_with(VNI)
    }

    pub fn sleeve_with(&self, vni: u32) -> Sleeve {
        self.sleeve_that(vni, drop)
    }

    /// Starts it with somebody who gets the messages of peers.
    pub fn sleeve_that(&self, vni: u32, inbox: impl Fn(Message) + Send + Sync + 'static) -> Sleeve {
        let settings = Settings {
            device: "kontena-tap".to_owned(),
            port: PORT,
            tunnel_address: tunnel_address(self.number),
            vni,
        };
        let sleeve = self.keepers[0].run(move || Sleeve::start(settings, inbox).unwrap());
        self.netns.run(&format!(
            "ip link set kontena-tap mtu {MTU} master kontena up"
        ));
        sleeve
    }
}

/// Nobody says anything by himself, as the agent has it on the bridge and Docker in a
/// container: what is counted is of the test.
fn no_ipv6() {
    for of in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6");
        // A kernel without IPv6 says nothing either.
        if std::path::Path::new(&path).exists() {
            std::fs::write(path, "1").unwrap();
        }
    }
}

/// Hosts 1 to `count`, each with a sleeve that knows the others.
pub fn world(count: u8) -> (Switch, Vec<Host>, Vec<Sleeve>) {
    let switch = Switch::start();
    let hosts: Vec<Host> = (1..=count)
        .map(|number| Host::start(&switch, number))
        .collect();
    let sleeves: Vec<Sleeve> = hosts.iter().map(Host::sleeve).collect();
    for (host, sleeve) in hosts.iter().zip(&sleeves) {
        sleeve.set_table(&table(host.number, 1..=count));
    }
    (switch, hosts, sleeves)
}

/// What one host knows of all.
pub fn table(own: u8, all: impl IntoIterator<Item = u8>) -> Table {
    let mut table = Table {
        own: vec![key(own)],
        ..Table::default()
    };
    for number in all.into_iter().filter(|number| *number != own) {
        let peer = Peer {
            current: key(number).public(),
            next: None,
            endpoint: Some(endpoint(number)),
        };
        table.peers.insert(tunnel_address(number), peer);
        table.owners.insert(mac(number), tunnel_address(number));
        table.floods.insert(tunnel_address(number));
    }
    table
}

pub fn key(number: u8) -> PrivateKey {
    PrivateKey::from_octets([number; 32])
}

pub fn endpoint(number: u8) -> SocketAddr {
    (underlay(number), PORT).into()
}

/// The address inside the tunnel.
pub fn tunnel_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(100, 127, 81, number)
}

/// The container's overlay address.
pub fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 81, 1, number)
}

pub fn mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 1, number])
}
