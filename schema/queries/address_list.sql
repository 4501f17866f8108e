-- address_list
-- Held addresses in rising order, narrowed and by page.
select jsonb_build_object(
    'address', host(a.ip), 'class', a.class, 'kind', a.kind, 'holder', a.holder, 'node', a.node,
    'lease', a.lease, 'leased_at', iso(a.leased_at)
)
from grids g
join addresses a on a.grid_id = g.id and a.lease is not null
where g.name = $1
    and ($2::text is null or a.kind = $2)
    and ($3::text is null or a.holder = $3 or a.kind = 'placement' and regexp_replace(a.holder, '-[0-9]+$', '') = $3)
    and ($4::text is null or a.node = $4)
    and ($5::text is null or a.ip > $5::text::inet)
order by a.ip
limit $6
