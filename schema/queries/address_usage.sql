-- address_usage
-- What a full grid says about itself: its size, its use, and who holds the most.
select jsonb_build_object(
    'size', (2 ^ (32 - masklen(g.subnet)))::bigint - 2,
    'nodes', (select count(*) from nodes where grid_id = g.id),
    'leased', (select count(*) from addresses where grid_id = g.id and lease is not null),
    'biggest_holders', (
        select coalesce(jsonb_agg(jsonb_build_object('service', label, 'addresses', held) order by held desc, label), '[]')
        from (
            select s.label, count(*) as held
            from placements p
            join services s on s.id = p.service_id
            where p.grid_id = g.id and p.lease is not null
            group by s.label
            order by held desc, s.label
            limit 5
        ) holder
    )
)
from grids g where g.id = $1
