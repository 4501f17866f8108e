-- replica_remove
-- A replica that stops, with the sessions whose end it could not write.
with gone as (
    delete from replicas where id = $1 returning id
)
update sessions set closed_at = clock_timestamp()
from gone
where sessions.replica_id = gone.id and sessions.closed_at is null
