//! WireGuard in user space with a kernel VXLAN device inside: what one gets without
//! the sleeve where the kernel has no WireGuard. On the wire it is the same.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kontena_lab::underlay;
use kontena_schema::limits::OVERLAY_MTU;
use nix::sys::signal::Signal;

use super::hosts::{Host, Pair, address, mac, of_each};
use super::process::{Daemon, here, output};
use super::scratch;
use crate::bench::BenchError;

const PORT: u16 = 6783;
/// WireGuard's own default.
const MTU: u32 = 1420;
const VNI: u32 = 7;
/// How long it takes to derive a key, at most.
const WITHIN: Duration = Duration::from_secs(10);

pub(crate) fn start(hosts: [Host; 2]) -> Result<Pair, BenchError> {
    let directory = scratch::directory("wireguard-go")?;
    // Each finds its control socket here; that of another program is not seen.
    scratch::directory("wireguard")?;
    let publics = of_each(&hosts, |host| public_key(host.number, &directory))?;
    let [first, second] = &hosts;
    let daemons = [
        tunnel(first, second.number, &publics[1], &directory)?,
        tunnel(second, first.number, &publics[0], &directory)?,
    ];
    let containers = of_each(&hosts, |host| {
        let container = host.container(OVERLAY_MTU, address(host.number))?;
        host.run("ip link set vxlan0 master br0 up")?;
        Ok(container)
    })?;
    Pair::of(containers, address(hosts[1].number), (daemons, hosts))
}

/// Makes a host's key, and tells the public half.
fn public_key(number: u8, directory: &Path) -> Result<String, BenchError> {
    let private = directory.join(format!("{number}.key"));
    fs::write(&private, here("wg genkey")?)?;
    let mut command = Command::new("sh");
    command.args(["-c", "wg pubkey <\"$0\""]).arg(private);
    output(command, WITHIN)
}

/// Makes `vxlan0` inside a tunnel to the other host.
fn tunnel(host: &Host, other: u8, other_key: &str, directory: &Path) -> Result<Daemon, BenchError> {
    let (own, at) = (host.number, directory.display());
    let device = format!("wg{own}");
    let mut command = host.netns.command(&format!("wireguard-go -f {device}"));
    command.env("LOG_LEVEL", "error");
    let log = directory.join(format!("{own}.log"));
    let mut daemon = Daemon::start(command, &log, Signal::SIGTERM)?;
    let (other_inner, other_underlay) = (inner(other), underlay(other));
    let set = format!(
        "wg set {device} listen-port {PORT} private-key {at}/{own}.key \
         peer {other_key} allowed-ips {other_inner}/32 endpoint {other_underlay}:{PORT}"
    );
    daemon.until("wireguard-go takes its settings", || host.run(&set))?;
    let (own_inner, other_mac) = (inner(own), mac(other));
    for line in [
        format!("ip addr add {own_inner}/24 dev {device}"),
        format!("ip link set {device} mtu {MTU} up"),
        format!("ip link add vxlan0 mtu {OVERLAY_MTU} type vxlan id {VNI} dstport 6784 nolearning"),
        format!("bridge fdb append 00:00:00:00:00:00 dev vxlan0 dst {other_inner} self permanent"),
        format!("bridge fdb add {other_mac} dev vxlan0 dst {other_inner} self permanent"),
    ] {
        host.run(&line)?;
    }
    Ok(daemon)
}

/// A host's address inside the tunnel.
fn inner(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(100, 127, 81, number)
}
