-- node_number_address
-- The overlay address of a number.
select host(base + $2::bigint) from pools where grid_id = $1
