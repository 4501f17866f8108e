//! nebula, which carries layer 3: each host is a member, and gives its containers'
//! network to the other (`unsafe_routes`, with the network in its certificate). So
//! containers reach each other through their hosts, as with any other router.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use kontena_lab::underlay;
use nix::sys::signal::Signal;

use super::hosts::{Container, Host, Pair, of_each};
use super::process::{Daemon, here};
use super::scratch;
use crate::bench::BenchError;

/// nebula's own default; the containers have the same, so that none has to learn it.
const MTU: u32 = 1300;
const PORT: u16 = 4242;

pub(crate) fn start(hosts: [Host; 2]) -> Result<Pair, BenchError> {
    let directory = scratch::directory("nebula")?;
    let at = directory.display();
    here(&format!(
        "nebula-cert ca -name bench -out-crt {at}/ca.crt -out-key {at}/ca.key"
    ))?;
    let [first, second] = &hosts;
    let members = [
        member(first, second.number, &directory)?,
        member(second, first.number, &directory)?,
    ];
    let containers = of_each(&hosts, container)?;
    Pair::of(
        containers,
        container_address(hosts[1].number),
        (members, hosts),
    )
}

/// A container in the network of its host, which is its router.
fn container(host: &Host) -> Result<Container, BenchError> {
    let container = host.container(MTU, container_address(host.number))?;
    let router = network(host.number, 1);
    host.run(&format!("ip addr add {router}/24 dev br0"))?;
    host.netns
        .inside(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?;
    container.run(&format!("ip route add default via {router}"))?;
    Ok(container)
}

fn member(host: &Host, other: u8, directory: &Path) -> Result<Daemon, BenchError> {
    let (own, at) = (host.number, directory.display());
    let (address, network) = (member_address(own), network(own, 0));
    here(&format!(
        "nebula-cert sign -ca-crt {at}/ca.crt -ca-key {at}/ca.key -name host-{own} -ip {address}/24 \
         -subnets {network}/24 -out-crt {at}/{own}.crt -out-key {at}/{own}.key"
    ))?;
    let file = directory.join(format!("{own}.yml"));
    fs::write(&file, settings(own, other, directory))?;
    let command = host
        .netns
        .command(&format!("nebula -config {}", file.display()));
    let log = directory.join(format!("{own}.log"));
    let mut daemon = Daemon::start(command, &log, Signal::SIGTERM)?;
    daemon.until("nebula makes its device", || {
        host.run("ip link show dev nebula up")
    })?;
    Ok(daemon)
}

/// What a member is told; the rest is nebula's default.
fn settings(own: u8, other: u8, directory: &Path) -> String {
    let at = directory.display();
    let (other_address, other_underlay) = (member_address(other), underlay(other));
    let other_network = network(other, 0);
    format!(
        "pki: {{ca: {at}/ca.crt, cert: {at}/{own}.crt, key: {at}/{own}.key}}
static_host_map: {{{other_address}: ['{other_underlay}:{PORT}']}}
lighthouse: {{am_lighthouse: false, hosts: []}}
listen: {{host: 0.0.0.0, port: {PORT}}}
tun:
  dev: nebula
  unsafe_routes:
    - {{route: {other_network}/24, via: {other_address}}}
firewall:
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
"
    )
}

/// A host's address inside nebula.
fn member_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(100, 100, 1, number)
}

/// An address in the network of a host's containers.
fn network(number: u8, address: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 92, number, address)
}

fn container_address(number: u8) -> Ipv4Addr {
    network(number, 2)
}
