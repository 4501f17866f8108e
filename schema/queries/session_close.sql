-- session_close
-- The node is lost when the grid's grace has passed, or the longer one of $3.
update sessions s
set closed_at = clock_timestamp(),
    lose_at = clock_timestamp() + greatest(g.grace_ms, $3::bigint) * interval '1 millisecond'
from nodes n
join grids g on g.id = n.grid_id
where n.id = s.node_id and s.node_id = $1 and s.epoch = $2 and s.closed_at is null
