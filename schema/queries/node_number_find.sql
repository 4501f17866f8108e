-- node_number_find
-- The lowest number that no node has and whose address nobody holds; if there is
-- none, the lowest that a node can have back from an instance, and which.
select n.number::smallint, a.placement_id
from pools p
cross join generate_series(1, 254) as n (number)
left join addresses a on a.grid_id = p.grid_id and a.ip = p.base + n.number and a.lease is not null
where p.grid_id = $1 and (a.lease is null or a.kind = 'placement')
order by a.lease is not null, n.number
limit 1
