-- service_update
-- Counts 1 when the description changed.
update services
set spec = $2, instances = $3, revision = revision + 1, updated_at = clock_timestamp()
where id = $1 and (spec, instances) is distinct from ($2, $3)
