-- tombstone_sweep
-- Forgets old tombstones and raises the horizon of their grids with them.
with old as (
    delete from tombstones where at < clock_timestamp() - $1::float8 * interval '1 second'
    returning grid_id, revision
)
update grids set horizon = greatest(horizon, newest.revision)
from (select grid_id, max(revision) as revision from old group by grid_id) newest
where grids.id = newest.grid_id
