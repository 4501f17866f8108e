-- node_ping_sweep
delete from pings where created_at < clock_timestamp() - $1::float8 * interval '1 second'
