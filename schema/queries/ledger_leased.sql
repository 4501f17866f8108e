-- ledger_leased
insert into ledger (grid_id, ip, lease, holder, node_id, event, reason, revision)
select p.grid_id, p.ip, p.lease, coalesce(k.name || '/', '') || s.name || '-' || p.instance,
    p.node_id, 'leased', $2, $3
from placements p
join services s on s.id = p.service_id
left join stacks k on k.id = s.stack_id
where p.id = any($1)
