-- node_ping_expire
-- One that is just told of is left to who tells.
update pings
set state = case state when 'queued' then 'expired' else 'interrupted' end,
    error = case state when 'queued' then 'the node did not start it in time'
        else 'the node did not tell in time what came of it' end,
    finished_at = clock_timestamp()
where id in (
    select id from pings
    where state in ('queued', 'started') and expires_at < clock_timestamp()
    order by id
    for update skip locked
)
