-- grid_insert
insert into grids (name, subnet, supernet, trusted_subnets, initial_size, grace_ms)
values ($1, $2::text::cidr, $3::text::cidr, $4::text[]::cidr[], $5, $6)
returning id
