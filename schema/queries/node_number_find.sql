-- node_number_find
-- The lowest number that no node has and whose address nobody holds; if there is
-- none, the lowest that a node can have back from an instance, and which.
select n.number::smallint, a.placement_id
from grids g
cross join generate_series(1, 254) as n (number)
left join addresses a on a.grid_id = g.id and a.ip = grid_base(g.subnet) + n.number and a.lease is not null
where g.id = $1 and (a.lease is null or a.kind = 'placement')
order by a.lease is not null, n.number
limit 1
