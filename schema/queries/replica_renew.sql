-- replica_renew
insert into replicas (id, started_at, renewed_at)
values ($1, clock_timestamp(), clock_timestamp())
on conflict (id) do update set renewed_at = clock_timestamp()
