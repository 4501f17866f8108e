-- node_peers
-- Paths to nodes that are no more are left out.
select coalesce(jsonb_agg(peer), '[]')
from nodes n
cross join jsonb_array_elements(n.peers) peer
where n.id = $1 and exists (select from nodes other where other.id = (peer ->> 'node')::bigint)
