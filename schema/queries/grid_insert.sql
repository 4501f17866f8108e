-- grid_insert
with made as (
    insert into grids (name, subnet, supernet, inner_subnet, trusted_subnets, initial_size, grace_ms)
    values ($1, $2::text::cidr, $3::text::cidr, $4::text::cidr, $5::text[]::cidr[], $6, $7)
    returning id, subnet
), pool as (
    insert into pools (grid_id, base, hosts, lease_last)
    select id, grid_base(subnet), grid_hosts(subnet), 0 from made
)
select id from made
