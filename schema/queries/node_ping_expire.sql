-- node_ping_expire
update pings
set state = case state when 'queued' then 'expired' else 'interrupted' end,
    error = case state when 'queued' then 'the node did not start it in time'
        else 'the node did not tell in time what came of it' end,
    finished_at = clock_timestamp()
where state in ('queued', 'started') and expires_at < clock_timestamp()
