//! A switch for as many hosts as a grid takes, and its Master.
//!
//! The addresses are 198.18.0.0/15, which is for benchmarks (RFC 2544): the range of
//! the small lab has no netns for a Master beside 254 hosts. What the kernel learns of
//! neighbours is bounded over all namespaces together (`gc_thresh3`, 1024), far below
//! the pairs of such a switch; entries that are permanent do not count. So every host
//! knows all others from the start, as behind a router that answers for them.

use std::fmt::Write;
use std::net::Ipv4Addr;

use crate::{Netns, Switch};

/// The addresses of the switch.
pub const SUBNET: &str = "198.18.0.0/15";

/// The most hosts that there are addresses for here.
pub const HOSTS_MAX: u16 = 1000;

/// The address of a host: 198.18.0.0 and its number, from 1 on.
pub fn address(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(198, 18, high, low)
}

/// The MAC of a host.
fn mac(number: u16) -> String {
    let [high, low] = number.to_be_bytes();
    format!("02:c6:12:00:{high:02x}:{low:02x}")
}

/// Gives namespaces an `eth0` on the switch; the first is host 1.
pub fn plug(switch: &Switch, namespaces: &[Netns]) {
    let hosts = || (1_u16..).zip(namespaces);
    assert!(namespaces.len() <= HOSTS_MAX.into());
    let mut ports = String::new();
    for (number, netns) in hosts() {
        let (mac, task) = (mac(number), netns.task());
        let text = &mut ports;
        let _ = writeln!(
            text,
            "link add port{number} type veth peer name eth0 address {mac} netns {task}"
        );
        let _ = writeln!(text, "link set port{number} master sw up");
    }
    switch.netns.feed("ip -batch -", &ports);
    for (number, netns) in hosts() {
        let mut own = format!(
            "addr add {}/15 dev eth0\nlink set eth0 up\n",
            address(number)
        );
        for (other, _) in hosts().filter(|(other, _)| *other != number) {
            let (at, mac) = (address(other), mac(other));
            let _ = writeln!(own, "neigh add {at} lladdr {mac} dev eth0 nud permanent");
        }
        netns.feed("ip -batch -", &own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_addresses_of_the_range_for_benchmarks() {
        assert_eq!(address(1), Ipv4Addr::new(198, 18, 0, 1));
        assert_eq!(address(256), Ipv4Addr::new(198, 18, 1, 0));
        assert_eq!(mac(256), "02:c6:12:00:01:00");
    }
}
