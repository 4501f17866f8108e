-- session_forget
-- Sessions that this replica no longer has, because their end could not be
-- written. Those opened just now may not be in its list yet.
update sessions s
set closed_at = clock_timestamp(),
    lose_at = clock_timestamp() + greatest(g.grace_ms, $5::bigint) * interval '1 millisecond'
from nodes n
join grids g on g.id = n.grid_id
where n.id = s.node_id and s.replica_id = $1 and s.closed_at is null
    and s.opened_at < clock_timestamp() - $2::float8 * interval '1 second'
    and not exists (
        select from unnest($3::bigint[], $4::bigint[]) as live (node, epoch)
        where live.node = s.node_id and live.epoch = s.epoch
    )
