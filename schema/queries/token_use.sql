-- token_use
update tokens set used_at = clock_timestamp() where id = $1 and used_at is null
