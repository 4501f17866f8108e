//! What is measured of the path to a peer, as the Master takes it.

use std::time::Duration;

use kontena_schema::agent::PathMeasure;
use kontena_schema::ids::NodeId;
use kontena_schema::limits::OVERLAY_MTU;

use crate::peer::table::Health;

pub(crate) fn path(node: NodeId, health: &Health) -> PathMeasure {
    let tunnel = &health.tunnel;
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    PathMeasure {
        node,
        endpoint: tunnel.endpoint,
        last_handshake_s: tunnel.last_handshake.map(|ago| ago.as_secs()),
        round_trip_us: health.round_trip.map(us),
        loss: health.loss,
        mtu: OVERLAY_MTU,
        sent_bytes: tunnel.sent_bytes,
        received_bytes: tunnel.received_bytes,
    }
}
