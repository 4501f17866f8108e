-- grid_await
-- Waits for the grid's lock and reads nothing that others change.
select id from grids where name = $1
for no key update
