-- node_ping_insert
insert into pings (grid_id, node_id, peer_id, count, revision, expires_at)
values ($1, $2, $3, $4, $5, clock_timestamp() + $6::float8 * interval '1 second')
returning id
