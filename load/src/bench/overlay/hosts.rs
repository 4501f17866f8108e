//! Hosts, containers, and what all configurations have in common. A host and a
//! container are a network namespace each.

use std::any::Any;
use std::net::Ipv4Addr;

use kontena_lab::{Keeper, Netns, Switch};
use kontena_schema::mac::Mac;

use super::process::{inside, until};
use crate::bench::BenchError;

/// The network of containers that are on one layer 2.
const PREFIX: u8 = 24;
/// What the underlay carries.
const UNDERLAY_MTU: u32 = 1500;

/// A host on the switch, with `eth0`.
pub(crate) struct Host {
    pub(crate) keeper: Keeper,
    pub(crate) netns: Netns,
    pub(crate) number: u8,
}

impl Host {
    pub(crate) fn start(switch: &Switch, number: u8) -> Self {
        let (keeper, netns) = Keeper::start();
        switch.plug(&netns, number);
        Self {
            keeper,
            netns,
            number,
        }
    }

    /// Runs a program that must succeed.
    pub(crate) fn run(&self, line: &str) -> Result<String, BenchError> {
        inside(&self.netns, line)
    }

    /// Makes a bridge, and a container with an interface on it.
    pub(crate) fn container(&self, mtu: u32, address: Ipv4Addr) -> Result<Container, BenchError> {
        let container = Container::start();
        let (task, mac) = (container.netns.task(), mac(self.number));
        self.run(&format!(
            "ip link add br0 mtu {mtu} type bridge mcast_snooping 0"
        ))?;
        self.run("ip link set br0 up")?;
        self.run(&format!(
            "ip link add veth0 mtu {mtu} type veth peer name eth0 netns {task} mtu {mtu} address {mac}"
        ))?;
        self.run("ip link set veth0 master br0 up")?;
        container.run(&format!("ip addr add {address}/{PREFIX} dev eth0"))?;
        container.run("ip link set eth0 up")?;
        Ok(container)
    }
}

/// A container, without an interface.
pub(crate) struct Container {
    _keeper: Keeper,
    pub(crate) netns: Netns,
}

impl Container {
    pub(crate) fn start() -> Self {
        let (keeper, netns) = Keeper::start();
        Self {
            _keeper: keeper,
            netns,
        }
    }

    pub(crate) fn run(&self, line: &str) -> Result<String, BenchError> {
        inside(&self.netns, line)
    }
}

/// Two containers that reach each other, and all that this takes.
pub(crate) struct Pair {
    pub(crate) from: Netns,
    pub(crate) to: Netns,
    pub(crate) to_address: Ipv4Addr,
    _keep: Box<dyn Any>,
}

impl Pair {
    /// Waits until the first reaches the second. What is in `keep` lives as long as
    /// the pair.
    pub(crate) fn connected(
        from: Netns,
        to: Netns,
        to_address: Ipv4Addr,
        keep: impl Any,
    ) -> Result<Self, BenchError> {
        until(&format!("ping {to_address}"), || from.ping(to_address))?;
        Ok(Self {
            from,
            to,
            to_address,
            _keep: Box::new(keep),
        })
    }

    /// The same for containers of ours.
    pub(crate) fn of(
        containers: [Container; 2],
        to_address: Ipv4Addr,
        keep: impl Any,
    ) -> Result<Self, BenchError> {
        let [from, to] = containers.each_ref().map(|one| one.netns.clone());
        Self::connected(from, to, to_address, (keep, containers))
    }
}

/// Makes one of each host.
pub(crate) fn of_each<T>(
    hosts: &[Host; 2],
    mut make: impl FnMut(&Host) -> Result<T, BenchError>,
) -> Result<[T; 2], BenchError> {
    let [first, second] = hosts;
    Ok([make(first)?, make(second)?])
}

/// The address of a host's container, where all containers are on one layer 2.
pub(crate) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 81, 1, number)
}

/// The MAC of a host's container.
pub(crate) fn mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 1, number])
}

/// No overlay: the underlay is a port of each host's bridge.
pub(crate) fn raw(hosts: [Host; 2]) -> Result<Pair, BenchError> {
    let containers = of_each(&hosts, |host| {
        let container = host.container(UNDERLAY_MTU, address(host.number))?;
        host.run("ip link set eth0 master br0")?;
        Ok(container)
    })?;
    Pair::of(containers, address(hosts[1].number), hosts)
}
