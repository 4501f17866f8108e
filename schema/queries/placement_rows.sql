-- placement_rows
select jsonb_build_object(
    'id', id, 'instance', instance, 'node_id', node_id, 'service_revision', service_revision
)
from placements
where service_id = $1 and desired <> 'removed'
order by instance
