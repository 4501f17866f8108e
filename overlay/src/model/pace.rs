//! How the pace of periodic work follows the size of the grid.

/// How many intervals longer than usual work may wait whose cost grows with the number
/// of peers: one for every 64.
pub fn extra_intervals(peers: usize) -> u32 {
    u32::try_from(peers / 64).unwrap_or(u32::MAX)
}
