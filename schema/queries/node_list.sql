-- node_list
select jsonb_build_object(
    'id', g.name || '/' || n.name, 'node_id', n.engine_id, 'name', n.name,
    'connected', s.node_id is not null and s.closed_at is null,
    'status', case when s.node_id is not null and s.closed_at is null then 'online' else 'offline' end,
    'node_number', n.number, 'initial_member', n.number <= g.initial_size,
    'overlay_ip', host(g.subnet::inet + n.number),
    'public_ip', host(n.public_ip), 'private_ip', host(n.private_ip), 'region', n.region,
    'labels', n.facts -> 'labels', 'agent_version', n.facts -> 'agent_version',
    'docker_version', n.facts -> 'docker_version', 'kernel_version', n.facts -> 'kernel_version',
    'os', n.facts -> 'os', 'cpus', n.facts -> 'cpus', 'mem_total', n.facts -> 'mem_total_bytes',
    'created_at', iso(n.created_at), 'connected_at', iso(s.opened_at),
    'disconnected_at', iso(s.closed_at), 'public_key', n.key, 'peers', n.peers,
    'drops', coalesce(n.measures -> 'drops', '{}'), 'measured_at', iso(n.measured_at)
)
from nodes n
join grids g on g.id = n.grid_id
left join sessions s on s.node_id = n.id
where g.name = $1 and ($2::text is null or n.name = $2)
order by n.number
