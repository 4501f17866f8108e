-- grid_held
select held from grids where id = $1
