-- node_measure
-- Keeps what the node of session ($1, $2) measured. No agent must know it: without
-- the grid's lock and without a revision.
update nodes set measures = $3, measured_at = clock_timestamp()
where id = $1
    and exists (select from sessions where node_id = $1 and epoch = $2 and closed_at is null)
