-- placement_unwait
-- Those of these placements that wait do so no more; counts them.
with gone as (
    update placements set lease_state = 'none', waiting = null
    where id = any($2) and lease_state = 'waiting'
    returning id
), counted as (
    update pools set waiting = waiting - (select count(*) from gone)
    where grid_id = $1 and exists (select from gone)
)
select count(*) from gone
