-- node_peer_list
-- The peers of node $2 of grid $1, as it last reported and measured them.
select jsonb_build_object(
    'node', other.name, 'node_number', other.number,
    'overlay_ip', host(g.subnet::inet + other.number),
    'connected', s.node_id is not null and s.closed_at is null,
    'path', path.peer -> 'path', 'unreachable', path.peer -> 'unreachable',
    'sealed_because', path.peer -> 'sealed_because',
    'measured_at', iso(n.measured_at), 'measure', way.measure
)
from nodes n
join grids g on g.id = n.grid_id
join nodes other on other.grid_id = n.grid_id and other.id <> n.id
left join sessions s on s.node_id = other.id
left join lateral (
    select peer from jsonb_array_elements(n.peers) peer
    where (peer ->> 'node')::bigint = other.id limit 1
) path on true
left join lateral (
    select measure from jsonb_array_elements(n.measures -> 'paths') measure
    where (measure ->> 'node')::bigint = other.id limit 1
) way on true
where g.name = $1 and n.name = $2
order by other.number
