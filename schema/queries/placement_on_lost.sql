-- placement_on_lost
-- Those of these placements whose node is lost: nobody will report that the
-- container is gone.
select jsonb_build_object(
    'id', p.id, 'node_id', p.node_id, 'ip', host(p.ip), 'lease_state', p.lease_state, 'desired', p.desired,
    'service_id', s.id, 'stack_id', s.stack_id
)
from placements p
join services s on s.id = p.service_id
join sessions on sessions.node_id = p.node_id and sessions.lost_at is not null
where p.id = any($1)
order by p.ip, p.id
