-- service_row
select jsonb_build_object(
    'id', s.id, 'name', s.name, 'stack_id', s.stack_id, 'stack', k.name, 'label', s.label,
    'spec', s.spec, 'instances', s.instances, 'state', s.state, 'revision', s.revision
)
from services s
left join stacks k on k.id = s.stack_id
where s.grid_id = $1 and s.name = $3 and k.name is not distinct from $2
