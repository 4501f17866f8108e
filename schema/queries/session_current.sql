-- session_current
-- Whether this is still the node's latest connection; under the grid's lock.
select exists (select from sessions where node_id = $1 and epoch = $2 and closed_at is null)
