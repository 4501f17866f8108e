-- idempotency_show
select request_hash, status, body from idempotency_keys where actor = $1 and key = $2
