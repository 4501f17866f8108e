-- ledger_released
insert into ledger (grid_id, ip, lease, holder, node_id, event, reason, revision)
select p.grid_id, p.ip, p.lease, coalesce(k.name || '/', '') || s.name || '-' || p.instance,
    p.node_id, 'released', $2, $3
from placements p
join services s on s.id = p.service_id
left join stacks k on k.id = s.stack_id
where p.id = $1
