-- idempotency_claim
insert into idempotency_keys (actor, key, request_hash, status, body)
values ($1, $2, $3, 0, 'null')
on conflict do nothing
