-- feed_changes
-- What changed in grid $1 after revision $2 of timeline $3, in one snapshot:
-- `shared` for every agent, `own` by node. An agent that is behind the horizon,
-- ahead of the grid or from another timeline is answered from 0.
with at as materialized (
    select g.*, timeline() as timeline,
        case when $2 < g.horizon or $2 > g.revision or $3 <> timeline() then 0 else $2 end as since
    from grids g where g.id = $1
)
select
    at.timeline, at.since, at.revision,
    jsonb_build_object(
        'grid', case when at.settings_revision > at.since then jsonb_build_object(
            'id', at.id, 'name', at.name, 'subnet', at.subnet, 'supernet', at.supernet,
            'inner_subnet', at.inner_subnet, 'trusted_subnets', at.trusted_subnets, 'vni', at.vni) end,
        'nodes', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'id', n.id, 'name', n.name, 'number', n.number,
                'address', host(at.subnet::inet + n.number), 'region', n.region,
                'public_ip', host(n.public_ip), 'private_ip', host(n.private_ip),
                'behind_nat', n.behind_nat,
                'keys', case when n.key is not null then jsonb_build_object('current', n.key, 'next', n.next_key) end,
                'next_key_known', n.next_key_known, 'key_turn', n.key_turn) order by n.id), '[]')
            from nodes n where n.grid_id = at.id and n.revision > at.since),
        'endpoints', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'placement', p.id, 'node', p.node_id, 'address', host(p.ip), 'lease', p.lease,
                'stack', k.name, 'service', s.name, 'instance', p.instance,
                'ready', p.lease_state = 'held' and p.desired = 'running' and p.state = 'running'
                    and p.health <> 'unhealthy') order by p.id), '[]')
            from placements p
            join services s on s.id = p.service_id
            left join stacks k on k.id = s.stack_id
            where p.grid_id = at.id and p.endpoint_revision > at.since
                and p.lease_state in ('held', 'lost')),
        'gone_nodes', (
            select coalesce(jsonb_agg(t.id order by t.revision), '[]') from tombstones t
            where t.grid_id = at.id and t.kind = 'node' and at.since > 0 and t.revision > at.since),
        'gone_endpoints', (
            select coalesce(jsonb_agg(t.id order by t.revision), '[]') from tombstones t
            where t.grid_id = at.id and t.kind = 'endpoint' and at.since > 0 and t.revision > at.since)
    )::text as shared,
    (
        select coalesce(jsonb_object_agg(node_id, parts), '{}')
        from (
            select node_id, jsonb_build_object(
                'placements', coalesce(jsonb_agg(part order by id) filter (where kind = 'placement'), '[]'),
                'commands', coalesce(jsonb_agg(part order by id) filter (where kind = 'command'), '[]'),
                'pings', coalesce(jsonb_agg(part order by id) filter (where kind = 'ping'), '[]'),
                'gone_placements', coalesce(jsonb_agg(part order by id) filter (where kind = 'gone'), '[]')) as parts
            from (
                select p.node_id, 'placement' as kind, p.id, jsonb_build_object(
                    'id', p.id, 'desired', p.desired, 'stack', k.name, 'service', s.name,
                    'instance', p.instance, 'service_revision', p.service_revision,
                    'address', case p.lease_state when 'held' then host(p.ip) end,
                    'lease', case p.lease_state when 'held' then p.lease end, 'lease_reason', p.lease_reason,
                    'spec', s.deployed_spec,
                    'platform_env', jsonb_build_object(
                        'KONTENA_SERVICE_ID', at.name || '/' || coalesce(k.name, 'null') || '/' || s.name,
                        'KONTENA_SERVICE_NAME', s.name, 'KONTENA_GRID_NAME', at.name,
                        'KONTENA_STACK_NAME', coalesce(k.name, 'null'), 'KONTENA_NODE_NAME', n.name,
                        'KONTENA_SERVICE_INSTANCE_NUMBER', p.instance::text)) as part
                from placements p
                join services s on s.id = p.service_id
                join nodes n on n.id = p.node_id
                left join stacks k on k.id = s.stack_id
                where p.grid_id = at.id and p.revision > at.since
                union all
                select c.node_id, 'command', c.id, jsonb_build_object(
                    'id', c.id, 'placement', c.placement_id, 'kind', c.kind)
                from commands c
                where c.grid_id = at.id and c.revision > at.since and c.state = 'queued'
                    and c.expires_at > clock_timestamp()
                union all
                select i.node_id, 'ping', i.id, jsonb_build_object('id', i.id, 'peer', i.peer_id, 'count', i.count)
                from pings i
                where i.grid_id = at.id and i.revision > at.since and i.state = 'queued'
                    and i.expires_at > clock_timestamp()
                union all
                select t.node_id, 'gone', t.revision, to_jsonb(t.id)
                from tombstones t
                where t.grid_id = at.id and t.kind = 'placement' and at.since > 0
                    and t.revision > at.since and t.node_id is not null
            ) row_for_node
            group by node_id
        ) by_node
    )::text as own
from at
