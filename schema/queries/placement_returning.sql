-- placement_returning
-- What a node that was lost left behind, the oldest lease first.
select jsonb_build_object('id', p.id, 'node_id', p.node_id, 'node', n.name, 'ip', host(p.ip), 'lease', p.lease,
    'holder', coalesce(k.name || '/', '') || s.name || '-' || p.instance, 'desired', p.desired)
from placements p
join nodes n on n.id = p.node_id
join services s on s.id = p.service_id
left join stacks k on k.id = s.stack_id
where p.node_id = $1 and p.lease_state in ('lost', 'taken', 'none') and p.desired <> 'removed'
order by p.lease nulls last, p.id
