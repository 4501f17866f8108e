-- command_report
-- A command moves on from where it is; one that ended stays as it is.
update commands
set state = $3, error = $4,
    finished_at = case when $3 = 'started' then null else clock_timestamp() end
where id = $1 and node_id = $2 and state in ('queued', 'started')
