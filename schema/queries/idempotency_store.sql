-- idempotency_store
update idempotency_keys set status = $3, body = $4 where actor = $1 and key = $2
