-- loss_take
-- The nodes of a grid whose time has come, under the grid's lock.
update sessions s set lose_at = null, lost_at = clock_timestamp()
from nodes n
where n.id = s.node_id and n.grid_id = $1 and s.lose_at <= clock_timestamp() and s.closed_at is not null
returning s.node_id
