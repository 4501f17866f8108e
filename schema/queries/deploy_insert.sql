-- deploy_insert
insert into deploys (service_id, service_revision, deadline_at)
values ($1, $2, clock_timestamp() + $3::float8 * interval '1 second')
returning id
