-- placement_waiting
-- Those that wait, the longest first.
select jsonb_build_object('id', p.id, 'node_id', p.node_id, 'node', n.name, 'ip', null, 'lease', null,
    'holder', coalesce(k.name || '/', '') || s.name || '-' || p.instance, 'desired', p.desired)
from placements p
join nodes n on n.id = p.node_id
join services s on s.id = p.service_id
left join stacks k on k.id = s.stack_id
where p.grid_id = $1 and p.lease_state = 'waiting'
order by p.waiting
limit $2
