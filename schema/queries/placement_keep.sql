-- placement_keep
-- The instances that stay take the service's current revision.
update placements
set service_revision = $2, revision = $3, endpoint_revision = $3
where service_id = $1 and desired <> 'removed'
    and service_revision <> $2
