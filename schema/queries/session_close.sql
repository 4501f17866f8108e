-- session_close
update sessions set closed_at = clock_timestamp()
where node_id = $1 and epoch = $2 and closed_at is null
