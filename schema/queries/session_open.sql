-- session_open
insert into sessions (node_id, epoch, replica_id, opened_at)
values ($1, 1, $2, clock_timestamp())
on conflict (node_id) do update
set epoch = sessions.epoch + 1, replica_id = excluded.replica_id,
    opened_at = excluded.opened_at, closed_at = null
returning epoch
