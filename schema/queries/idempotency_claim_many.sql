-- idempotency_claim_many
insert into idempotency_keys (key, actor, request_hash, status, body)
select key, actor, hash, 0, 'null'
from unnest($1::text[], $2::text[], $3::bytea[]) as claimed (key, actor, hash)
on conflict (actor, key) do nothing
returning key, actor
