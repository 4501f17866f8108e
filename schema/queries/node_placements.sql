-- node_placements
select jsonb_build_object(
    'id', p.id, 'node_id', p.node_id, 'ip', host(p.ip),
    'service_id', s.id, 'stack_id', s.stack_id
)
from placements p
join services s on s.id = p.service_id
where p.node_id = $1
order by p.id
