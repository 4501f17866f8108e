-- node_placements
select jsonb_build_object(
    'id', p.id, 'node_id', p.node_id, 'ip', host(p.ip), 'lease_state', p.lease_state, 'desired', p.desired,
    'service_id', s.id, 'stack_id', s.stack_id
)
from placements p
join services s on s.id = p.service_id
where p.node_id = any($1)
order by p.ip, p.id
