-- service_rows_of_stack
select jsonb_build_object(
    'id', s.id, 'name', s.name, 'stack_id', s.stack_id, 'stack', k.name, 'label', s.label,
    'spec', s.spec, 'instances', s.instances, 'state', s.state, 'revision', s.revision
)
from services s
join stacks k on k.id = s.stack_id
where s.stack_id = $1 and s.state <> 'removing'
order by s.id
