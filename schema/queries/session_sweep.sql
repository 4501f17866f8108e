-- session_sweep
-- Sessions of replicas that are no more.
update sessions set closed_at = clock_timestamp()
where closed_at is null and not exists (select from replicas where id = replica_id)
