-- node_ping_show
select jsonb_build_object(
    'id', p.id, 'from', n.name, 'to', peer.name, 'count', p.count, 'state', p.state,
    'error', p.error, 'result', p.result, 'created_at', iso(p.created_at), 'finished_at', iso(p.finished_at)
)
from pings p
join grids g on g.id = p.grid_id
join nodes n on n.id = p.node_id
join nodes peer on peer.id = p.peer_id
where p.id = $1 and g.name = $2 and n.name = $3
