-- node_ping_report
-- How far pings of node $1 are, as its connection $2 tells. A ping moves on from where it is; one that ended stays as
-- it is, and so does everything when a newer connection writes.
update pings p
set state = told.state, result = told.result, error = told.error,
    expires_at = clock_timestamp() + $4::float8 * interval '1 second',
    finished_at = case when told.state = 'started' then null else clock_timestamp() end
from jsonb_to_recordset($3) as told (ping bigint, state text, result jsonb, error text), sessions s
where s.node_id = $1 and s.epoch = $2 and s.closed_at is null
    and p.id = told.ping and p.node_id = $1
    and (p.state = 'queued' or p.state = 'started' and told.state <> 'started')
