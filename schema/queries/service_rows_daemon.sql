-- service_rows_daemon
-- As they were deployed, not as they may have been described since.
select jsonb_build_object(
    'id', s.id, 'name', s.name, 'stack_id', s.stack_id, 'stack', k.name, 'label', s.label,
    'spec', s.deployed_spec, 'instances', s.instances, 'state', s.state, 'revision', s.deployed_revision
)
from services s
left join stacks k on k.id = s.stack_id
where s.grid_id = $1 and s.state = 'running' and s.deployed_spec ->> 'strategy' = 'daemon'
order by s.id
