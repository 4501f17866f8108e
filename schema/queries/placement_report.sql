-- placement_report
update placements
set state = $2, health = $3, running_revision = $4, container_id = $5, container_name = $6,
    error = $7, updated_at = clock_timestamp(),
    endpoint_revision = coalesce($8, endpoint_revision)
where id = $1
