-- service_list
select s.spec || jsonb_build_object(
    'id', g.name || '/' || coalesce(k.name, 'null') || '/' || s.name,
    'name', s.name, 'stack', k.name, 'dns', s.label || '.' || g.name || '.kontena.local',
    'instances', s.instances,
    'instance_counts', jsonb_build_object(
        'total', (select count(*) from placements p where p.service_id = s.id),
        'running', (select count(*) from placements p where p.service_id = s.id and p.state = 'running')),
    'state', s.state, 'revision', s.revision,
    'created_at', iso(s.created_at), 'updated_at', iso(s.updated_at)
)
from services s
join grids g on g.id = s.grid_id
left join stacks k on k.id = s.stack_id
where g.name = $1
    and ($2::text is null or coalesce(k.name, 'null') = $2)
    and ($3::text is null or s.name = $3)
order by k.name nulls first, s.name
