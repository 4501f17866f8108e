-- address_usage
-- What a full grid says about itself: its size, its use, and who holds the most.
select jsonb_build_object(
    'size', p.hosts,
    'nodes', (select count(*) from nodes where grid_id = g.id),
    'leased', p.held - (select count(*) from nodes where grid_id = g.id),
    'biggest_holders', (
        select coalesce(jsonb_agg(jsonb_build_object('kind', kind, 'holder', holder, 'addresses', held)
            order by held desc, holder), '[]')
        from (
            select kind, case kind when 'placement' then regexp_replace(holder, '-[0-9]+$', '') else holder end as holder,
                count(*) as held
            from addresses
            where grid_id = g.id and lease is not null and kind <> 'node'
            group by 1, 2
            order by 3 desc, 2
            limit 5
        ) most
    )
)
from grids g join pools p on p.grid_id = g.id where g.name = $1
