-- placement_lock
-- A placement of this node, for a report about it.
select jsonb_build_object(
    'id', p.id, 'node_id', p.node_id, 'service_id', p.service_id, 'stack_id', s.stack_id,
    'desired', p.desired, 'state', p.state, 'health', p.health, 'ip', host(p.ip), 'lease', p.lease
)
from placements p
join services s on s.id = p.service_id
where p.id = $1 and p.node_id = $2
for no key update of p
