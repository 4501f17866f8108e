-- address_find
-- Free addresses: by class, within a class the never used (lowest first) before
-- the longest released. Class 1 lies outside the node range and does not end in
-- .0 or .255; class 2 is the rest outside it; class 3 is the node range, without
-- the numbers that nodes have, from the top down.
with pool as (
    select id, set_masklen(network(subnet)::inet, 32) as base, (2 ^ (32 - masklen(subnet)))::bigint as size
    from grids where id = $1
),
fresh as (
    select 1 as class, base + host as ip, host as rank
    from pool, generate_series(256, size - 2) host
    where host % 256 not in (0, 255)
    union all
    select 2, base + host, host
    from pool, generate_series(255, size - 2) host
    where host % 256 in (0, 255)
    union all
    select 3, base + host, -host
    from pool, generate_series(1, 254) host
),
free as (
    select class::smallint, ip, 0 as used, rank, ip as tie
    from fresh, pool
    where not exists (select from addresses a where a.grid_id = pool.id and a.ip = fresh.ip)
    union all
    select a.class, a.ip, 1, a.released_revision, a.ip
    from addresses a, pool
    where a.grid_id = pool.id and a.lease is null
)
select host(ip) as ip, class
from free, pool
where class < 3
    or not exists (select from nodes n where n.grid_id = pool.id and free.ip = pool.base + n.number)
order by class, used, rank, tie
limit $2
