-- session_forget
-- Sessions that this replica no longer has, because their end could not be
-- written. Those opened just now may not be in its list yet.
update sessions set closed_at = clock_timestamp()
where replica_id = $1 and closed_at is null
    and opened_at < clock_timestamp() - $2::float8 * interval '1 second'
    and not exists (
        select from unnest($3::bigint[], $4::bigint[]) as live (node, epoch)
        where live.node = sessions.node_id and live.epoch = sessions.epoch
    )
