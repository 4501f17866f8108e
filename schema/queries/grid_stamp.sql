-- grid_stamp
update grids set revision = revision + 1 where id = $1 returning revision
