-- node_candidates
-- The connected nodes of a grid with what scheduling asks about them.
select jsonb_build_object(
    'id', n.id, 'name', n.name, 'number', n.number, 'labels', n.facts -> 'labels',
    'load', (select count(*) from placements p where p.node_id = n.id and p.desired <> 'removed'),
    'ports', (
        select coalesce(jsonb_agg(jsonb_build_object('service', s.id, 'port', port)), '[]')
        from placements p
        join services s on s.id = p.service_id
        cross join jsonb_array_elements(coalesce(s.deployed_spec -> 'ports', '[]')) port
        where p.node_id = n.id
    )
)
from nodes n
join sessions on sessions.node_id = n.id and sessions.closed_at is null
where n.grid_id = $1
order by n.number
