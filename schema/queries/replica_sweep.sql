-- replica_sweep
-- Replicas that did not renew, and their sessions. Not right after the server's
-- start: after an outage everybody is late.
with dead as (
    select id from replicas
    where renewed_at < clock_timestamp() - $1::float8 * interval '1 second'
        and pg_postmaster_start_time() < clock_timestamp() - $2::float8 * interval '1 second'
    for update skip locked
), gone as (
    delete from replicas using dead where replicas.id = dead.id returning replicas.id
)
update sessions set closed_at = clock_timestamp()
from gone
where sessions.replica_id = gone.id and sessions.closed_at is null
