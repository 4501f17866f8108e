-- placement_lose
-- The placements of lost nodes: the container may run or not, nobody knows.
update placements
set lease_state = case lease_state when 'held' then 'lost' else lease_state end,
    state = 'pending', health = 'unknown', endpoint_revision = $2
where id = any($1)
