-- stack_list
select jsonb_build_object(
    'id', g.name || '/' || k.name, 'name', k.name, 'stack', k.source, 'version', k.version,
    'state', case
        when k.removing then 'removing'
        when not exists (select from services s where s.stack_id = k.id and s.state <> 'initialized') then 'initialized'
        when not exists (select from services s where s.stack_id = k.id and s.state <> 'running') then 'running'
        when not exists (select from services s where s.stack_id = k.id and s.state = 'running') then 'stopped'
        else 'partially_running' end,
    'revision', k.revision, 'created_at', iso(k.created_at), 'updated_at', iso(k.updated_at)
)
from stacks k
join grids g on g.id = k.grid_id
where g.name = $1 and ($2::text is null or k.name = $2)
order by k.name
