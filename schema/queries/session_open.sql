-- session_open
-- $4: which of its connections; $5: the protocol that it speaks. A run of the agent that takes over is remembered, so
-- that the one before it is known when it comes back.
insert into sessions (node_id, epoch, replica_id, opened_at, instance, connection, protocol, protocol_epoch)
values ($1, 1, $2, clock_timestamp(), $3, $4, $5, 1)
on conflict (node_id) do update
set epoch = sessions.epoch + 1, replica_id = excluded.replica_id,
    opened_at = excluded.opened_at, closed_at = null, lose_at = null, lost_at = null,
    instance = excluded.instance, connection = excluded.connection,
    protocol = excluded.protocol, protocol_epoch = sessions.epoch + 1,
    superseded = case
        when sessions.instance is null or sessions.instance = excluded.instance then sessions.superseded
        else (array_prepend(sessions.instance, array_remove(sessions.superseded, excluded.instance)))[1:8] end
returning epoch
