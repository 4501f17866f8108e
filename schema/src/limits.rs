//! Every bound that two processes or two modules share, each with its reason.
//! Bounds of one module alone stand beside the code that they bound.

use std::time::Duration;

/// Longest DNS label (RFC 1035 section 2.3.4).
pub const LABEL_BYTES_MAX: usize = 63;

/// Longest name of a grid, stack or service. Two of them and an instance number
/// share one label (`stack-service-12`), which is checked where they meet.
pub const NAME_BYTES_MAX: usize = 48;

/// Most instances of one service: the class-1 addresses of the default subnet
/// are fewer than this, so it bounds typing errors, not use.
pub const INSTANCES_MAX: u32 = 8190;

/// Largest description of a service. An agent gets it with each instance on its
/// node, and 254 of this size fit a frame to it.
pub const SPEC_BYTES_MAX: usize = 64 << 10;

/// Most trusted subnets of a grid: each is looked at for each pair of nodes.
pub const TRUSTED_SUBNETS_MAX: usize = 256;

/// Most networks that a host tells of itself, the widest first. It tells only those that a grid
/// could overlap, and a host that has more of them that do not contain each other is a router.
pub const HOST_NETWORKS_MAX: usize = 256;

/// Most addresses that one request takes: the default subnet has no more.
pub const ADDRESSES_MAX: u32 = 8190;

/// Longest name of a reservation.
pub const RESERVATION_BYTES_MAX: usize = 255;

/// Most rows of one page of a list.
pub const PAGE_MAX: u32 = 1000;

/// Largest body of an HTTP request: a stack file of many services fits.
pub const HTTP_BODY_BYTES_MAX: usize = 1 << 20;

/// Largest frame from an agent to the Master: an inventory of 8190 containers
/// at about 300 bytes each.
pub const AGENT_FRAME_BYTES_MAX: usize = 4 << 20;

/// Largest frame from the Master to an agent: a full directory of 8190
/// endpoints and 254 nodes with the node's own placements.
pub const MASTER_FRAME_BYTES_MAX: usize = 16 << 20;

/// How often each side of the agent's WebSocket pings.
pub const PING_EVERY: Duration = Duration::from_secs(3);

/// A connection that was silent for this long is dead: three pings were lost.
pub const DEAD_AFTER: Duration = Duration::from_secs(9);

/// How long an unrenewed replica's row counts as alive.
pub const REPLICA_TTL: Duration = Duration::from_secs(10);

/// The least time that an agent has to find another replica when its own ends,
/// whatever the grid's grace: its first retries come within a second.
pub const REPLICA_LOSS: Duration = Duration::from_secs(5);

/// How often a replica looks for what no bell told it.
pub const TICK: Duration = Duration::from_secs(1);

/// An agent that says no `hello` within this time is cut off.
pub const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// The ports of the nodes' infrastructure services (the table in the network
/// model); no service may publish them.
pub const INFRASTRUCTURE_PORTS: [u16; 5] = [53, 2379, 2380, 6783, 6784];

/// The UDP port of the encrypted path, WireGuard.
pub const WIREGUARD_PORT: u16 = 6783;

/// The TCP port at which an agent says that it is there: where the encrypted path's port is
/// silent, it tells a host that is down from a way that is blocked.
pub const DOOR_PORT: u16 = 6783;

/// The UDP port of the fast path, VXLAN; inside the encrypted path too.
pub const VXLAN_PORT: u16 = 6784;

/// The UDP port, inside the encrypted path only, of the agents' messages to each other.
pub const PROBE_PORT: u16 = 6785;

/// Most echoes of one ping: who waits for it waits for seconds.
pub const PING_COUNT_MAX: u16 = 20;

/// Most pings of one node that are asked for or under way: each sends a few packets a
/// second, and an agent keeps twice as many in mind.
pub const PINGS_MAX: usize = 8;

/// The overlay's MTU: VXLAN inside WireGuard over an IPv6 underlay of 1500
/// bytes (1500 - 40 - 8 - 32 - 20 - 8 - 8 - 14), so that a pair can change its
/// path without a connection noticing. Lower where an underlay is.
pub const OVERLAY_MTU: u32 = 1370;

/// What VXLAN adds to a frame on an IPv4 underlay: 20 IPv4, 8 UDP, 8 VXLAN and
/// 14 Ethernet bytes.
pub const VXLAN_OVERHEAD: u32 = 50;

const _: () = {
    assert!(PING_EVERY.as_secs() * 3 <= DEAD_AFTER.as_secs());
    assert!(DEAD_AFTER.as_secs() < REPLICA_TTL.as_secs());
};
