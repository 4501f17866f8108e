-- grid_insert
with made as (
    insert into grids (name, subnet, supernet, trusted_subnets, initial_size, grace_ms)
    values ($1, $2::text::cidr, $3::text::cidr, $4::text[]::cidr[], $5, $6)
    returning id, subnet
), pool as (
    insert into pools (grid_id, base, hosts, lease_last)
    select id, grid_base(subnet), grid_hosts(subnet), 0 from made
)
select id from made
