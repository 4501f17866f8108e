-- deploy_show
select jsonb_build_object(
    'id', d.id,
    'service_id', g.name || '/' || coalesce(k.name, 'null') || '/' || s.name,
    'state', d.state, 'reason', d.reason,
    'created_at', iso(d.created_at), 'finished_at', iso(d.finished_at),
    'instance_deploys', (
        select coalesce(jsonb_agg(jsonb_build_object(
            'instance_number', p.instance, 'node', n.name, 'state', p.state, 'error', p.error
        ) order by p.instance), '[]')
        from placements p
        left join nodes n on n.id = p.node_id
        where p.service_id = s.id and p.desired = 'running'
    )
)
from deploys d
join services s on s.id = d.service_id
join grids g on g.id = s.grid_id
left join stacks k on k.id = s.stack_id
where d.id = $1 and g.name = $2 and k.name is not distinct from $3 and s.name = $4
