-- placement_insert
insert into placements
    (grid_id, service_id, instance, node_id, desired, service_revision, revision, endpoint_revision)
select $1, $2, instance, node_id, 'running', $3, $4, $4
from unnest($5::int[], $6::bigint[]) as wanted (instance, node_id)
returning id
