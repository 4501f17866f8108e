-- service_scale
update services set instances = $2, updated_at = clock_timestamp() where id = $1
