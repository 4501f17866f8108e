-- service_update
-- Another number of instances is no other description: what runs stays.
update services
set spec = $2, instances = coalesce($3, instances), updated_at = clock_timestamp(),
    revision = revision + (spec <> $2)::int
where id = $1 and (spec <> $2 or instances <> coalesce($3, instances))
