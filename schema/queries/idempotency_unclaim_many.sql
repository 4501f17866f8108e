-- idempotency_unclaim_many
delete from idempotency_keys k
using unnest($1::text[], $2::text[]) as lost (key, actor)
where k.key = lost.key and k.actor = lost.actor
