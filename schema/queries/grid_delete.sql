-- grid_delete
delete from grids where id = $1
