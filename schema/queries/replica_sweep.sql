-- replica_sweep
-- Replicas that did not renew for $1, their sessions, and those of replicas that
-- are no more. Not for $2 after the server's start: after an outage everybody is
-- late. A session that is opened anew while this waits for it has another epoch.
with dead as (
    select id from replicas
    where renewed_at < clock_timestamp() - $1::float8 * interval '1 second'
        and pg_postmaster_start_time() < clock_timestamp() - $2::float8 * interval '1 second'
    for update skip locked
), gone as (
    delete from replicas using dead where replicas.id = dead.id returning replicas.id
), ended as (
    select s.node_id, s.epoch from sessions s
    where s.closed_at is null
        and (s.replica_id in (select id from gone) or not exists (select from replicas r where r.id = s.replica_id))
        and pg_postmaster_start_time() < clock_timestamp() - $2::float8 * interval '1 second'
)
update sessions s
set closed_at = clock_timestamp(),
    lose_at = clock_timestamp() + greatest(g.grace_ms, $3::bigint) * interval '1 millisecond'
from ended, nodes n
join grids g on g.id = n.grid_id
where n.id = s.node_id and s.node_id = ended.node_id and s.epoch = ended.epoch and s.closed_at is null
