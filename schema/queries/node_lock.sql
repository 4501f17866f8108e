-- node_lock
-- Locks the row of node $1. Who opens a session has this lock, and who writes for one without the grid's.
select from nodes where id = $1 for no key update
