-- replica_sweep
with dead as (
    select id from replicas
    where renewed_at < clock_timestamp() - $1::float8 * interval '1 second'
    for update skip locked
)
delete from replicas using dead where replicas.id = dead.id
