-- container_list
select jsonb_build_object(
    'id', g.name || '/' || coalesce(n.name, '-') || '/' || coalesce(p.container_name, s.label || '-' || p.instance),
    'name', coalesce(p.container_name, s.label || '-' || p.instance),
    'container_id', p.container_id, 'node', n.name, 'stack', k.name, 'service', s.name,
    'instance_number', p.instance, 'image', s.deployed_spec -> 'image', 'state', p.state, 'health', p.health,
    'ip_address', case p.lease_state when 'held' then host(p.ip) end,
    'lease', case p.lease_state when 'held' then p.lease end, 'lease_state', p.lease_state,
    'service_rev', p.service_revision, 'error', case p.lease_state
        when 'waiting' then 'pending: grid_full_addresses (' || p.lease_reason || ')'
        when 'lost' then 'node lost'
        when 'taken' then 'node lost, and its address was given to another'
        else p.error end
)
from placements p
join grids g on g.id = p.grid_id
join services s on s.id = p.service_id
left join stacks k on k.id = s.stack_id
left join nodes n on n.id = p.node_id
where g.name = $1
order by k.name nulls first, s.name, p.instance, p.id
