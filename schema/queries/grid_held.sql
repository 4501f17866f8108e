-- grid_held
select held from pools where grid_id = $1
