-- replica_remove
-- A replica that stops, with the sessions whose end it could not write.
with gone as (
    delete from replicas where id = $1 returning id
)
update sessions s
set closed_at = clock_timestamp(),
    lose_at = clock_timestamp() + greatest(g.grace_ms, $2::bigint) * interval '1 millisecond'
from gone, nodes n
join grids g on g.id = n.grid_id
where n.id = s.node_id and s.replica_id = gone.id and s.closed_at is null
