-- idempotency_sweep
delete from idempotency_keys where at < clock_timestamp() - interval '24 hours'
