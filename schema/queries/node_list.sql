-- node_list
select jsonb_build_object(
    'id', g.name || '/' || n.name, 'node_id', n.engine_id, 'name', n.name,
    'connected', s.node_id is not null and s.closed_at is null,
    'status', case when s.node_id is not null and s.closed_at is null then 'online' else 'offline' end,
    'node_number', n.number, 'initial_member', n.number <= g.initial_size,
    'overlay_ip', host(g.subnet::inet + n.number),
    'public_ip', host(n.public_ip), 'private_ip', host(n.private_ip),
    'behind_nat', n.behind_nat, 'region', n.region,
    'labels', n.facts -> 'labels', 'agent_version', n.facts -> 'agent_version',
    'docker_version', n.facts -> 'docker_version', 'kernel_version', n.facts -> 'kernel_version',
    'os', n.facts -> 'os', 'cpus', n.facts -> 'cpus', 'mem_total', n.facts -> 'mem_total_bytes',
    'created_at', iso(n.created_at), 'connected_at', iso(s.opened_at),
    'disconnected_at', iso(s.closed_at), 'public_key', n.key,
    'next_key_waits_for', coalesce(waits.names, '[]'),
    -- Of one node: in a full grid all of them are 64,000 paths and 10 MB.
    'peers', case when $2::text is not null then n.peers else '[]' end,
    'drops', coalesce(n.measures -> 'drops', '{}'), 'measured_at', iso(n.measured_at),
    'networks', case when $2::text is not null then coalesce(n.facts -> 'networks', '[]') else '[]' end
)
from nodes n
join grids g on g.id = n.grid_id
left join sessions s on s.node_id = n.id
-- As node_next_keys_known has it: who is connected and did not say that it is ready. For one node, for it reads what
-- all others told of all others.
left join lateral (
    select jsonb_agg(b.name order by b.number) as names
    from nodes b
    join sessions t on t.node_id = b.id and t.closed_at is null
    where $2::text is not null and n.next_key is not null and not n.next_key_known and b.grid_id = n.grid_id and b.id <> n.id and b.key is not null and not exists (
        select from jsonb_array_elements(b.peers) peer
        where (peer ->> 'node')::bigint = n.id and peer ->> 'next_key' = n.next_key
    )
) waits on true
where g.name = $1 and ($2::text is null or n.name = $2)
order by n.number
