-- command_insert
insert into commands (grid_id, node_id, placement_id, kind, revision, expires_at)
select p.grid_id, p.node_id, p.id, $2, $3, clock_timestamp() + $4::float8 * interval '1 second'
from placements p
where p.service_id = $1 and p.desired = 'running' and p.node_id is not null
order by p.instance
