-- idempotency_store_many
update idempotency_keys k set status = $3, body = stored.body
from unnest($1::text[], $2::text[], $4::jsonb[]) as stored (key, actor, body)
where k.key = stored.key and k.actor = stored.actor
