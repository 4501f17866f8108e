-- node_number_find
-- The lowest number that no node has and whose address is not lent out.
select free.number::smallint
from grids g, generate_series(1, 254) as free (number)
where g.id = $1
    and not exists (select from nodes n where n.grid_id = g.id and n.number = free.number)
    and not exists (
        select from addresses a
        where a.grid_id = g.id and a.lease is not null
            and a.ip = set_masklen(network(g.subnet)::inet, 32) + free.number
    )
order by free.number
limit 1
