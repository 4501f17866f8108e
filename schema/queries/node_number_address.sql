-- node_number_address
-- The overlay address of a number.
select host(grid_base(subnet) + $2::bigint) from grids where id = $1
