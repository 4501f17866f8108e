-- node_overlaps
-- Nodes, of whichever grid, with a network or an address of their host that overlaps one of $1, at most $2.
select jsonb_build_object(
    'node', g.name || '/' || n.name, 'networks', coalesce(n.facts -> 'networks', '[]'),
    'public_ip', host(n.public_ip), 'private_ip', host(n.private_ip)
)
from nodes n
join grids g on g.id = n.grid_id
where n.public_ip <<= any ($1::text[]::inet[]) or n.private_ip <<= any ($1::text[]::inet[]) or exists (
    select from jsonb_array_elements(n.facts -> 'networks') of_host
    where (of_host ->> 'network')::inet && any ($1::text[]::inet[])
)
order by g.name, n.number
limit $2
