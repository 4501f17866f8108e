-- service_list
select s.spec || jsonb_build_object(
    'id', g.name || '/' || coalesce(k.name, 'null') || '/' || s.name,
    'name', s.name, 'stack', k.name, 'dns', s.label || '.' || g.name || '.kontena.local',
    'instances', s.instances,
    'instance_counts', jsonb_build_object(
        'total', (select count(*) from placements p where p.service_id = s.id),
        'running', (select count(*) from placements p where p.service_id = s.id and p.state = 'running')),
    'state', s.state, 'revision', s.revision,
    'created_at', iso(s.created_at), 'updated_at', iso(s.updated_at),
    -- The nodes' measurements are long: they are read for one service, not for all.
    'data', case when $3::text is not null then (
        select jsonb_build_object(
            'instances', count(kept.placement), 'bytes', coalesce(sum(kept.bytes), 0),
            'unmeasured', count(kept.placement) - count(kept.bytes),
            'untold', count(*) filter (where coalesce(jsonb_typeof(n.measures -> 'data'), 'null') <> 'array'),
            'age_s', floor(max(kept.age_s + extract(epoch from clock_timestamp() - n.measured_at)))
        )
        from placements p
        join nodes n on n.id = p.node_id
        left join lateral (
            select part -> 'placement' as placement, (part ->> 'bytes')::bigint as bytes, (part ->> 'age_s')::bigint as age_s
            from jsonb_array_elements(
                case jsonb_typeof(n.measures -> 'data') when 'array' then n.measures -> 'data' else '[]' end
            ) part
            where (part ->> 'placement')::bigint = p.id limit 1
        ) kept on true
        where p.service_id = s.id
    ) end
)
from services s
join grids g on g.id = s.grid_id
left join stacks k on k.id = s.stack_id
where g.name = $1
    and ($2::text is null or coalesce(k.name, 'null') = $2)
    and ($3::text is null or s.name = $3)
order by k.name nulls first, s.name
