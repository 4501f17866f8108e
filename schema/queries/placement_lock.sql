-- placement_lock
-- A placement of this node, for a report about it.
select jsonb_build_object(
    'id', p.id, 'node_id', p.node_id, 'ip', host(p.ip), 'lease_state', p.lease_state, 'desired', p.desired,
    'service_id', s.id, 'stack_id', s.stack_id, 'state', p.state, 'health', p.health, 'lease', p.lease
)
from placements p
join services s on s.id = p.service_id
where p.id = $1 and p.node_id = $2
for no key update of p
