-- grid_known
select id from grids where name = $1
