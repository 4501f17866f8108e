-- session_superseded
-- Which of these sessions are not their node's latest any more.
select live.node, live.epoch
from unnest($1::bigint[], $2::bigint[]) as live (node, epoch)
where not exists (
    select from sessions s
    where s.node_id = live.node and s.epoch = live.epoch and s.closed_at is null
)
