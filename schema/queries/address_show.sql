-- address_show
-- One address of the grid's subnet, held or free.
select jsonb_build_object(
    'address', host($2::text::inet), 'class', coalesce(a.class, case
        when host between 1 and 254 then 3
        when host % 256 in (0, 255) then 2
        else 1 end),
    'kind', a.kind, 'holder', a.holder, 'node', a.node, 'lease', a.lease, 'leased_at', iso(a.leased_at)
)
from grids g
join pools p on p.grid_id = g.id
cross join lateral (select $2::text::inet - p.base as host) h
left join addresses a on a.grid_id = g.id and a.ip = $2::text::inet
where g.name = $1 and h.host between 1 and p.hosts
