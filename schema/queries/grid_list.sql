-- grid_list
select jsonb_build_object(
    'id', g.name, 'name', g.name, 'initial_size', g.initial_size,
    'subnet', g.subnet, 'supernet', g.supernet, 'inner_subnet', g.inner_subnet,
    'trusted_subnets', g.trusted_subnets,
    'grace_s', g.grace_ms / 1000, 'revision', g.revision,
    'node_count', (select count(*) from nodes n where n.grid_id = g.id),
    'service_count', (select count(*) from services s where s.grid_id = g.id),
    'container_count', (select count(*) from placements p where p.grid_id = g.id)
)
from grids g
where $1::text is null or g.name = $1
order by g.name
