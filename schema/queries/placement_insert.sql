-- placement_insert
insert into placements
    (grid_id, service_id, instance, node_id, desired, service_revision, revision, endpoint_revision, ip, lease)
select $1, $2, instance, node_id, 'running', $3, $4, $4, ip::inet, lease
from unnest($5::int[], $6::bigint[], $7::text[], $8::bigint[]) as wanted (instance, node_id, ip, lease)
returning id
