-- address_rows
-- What is known of these addresses; those that have no row were never used.
select jsonb_build_object(
    'ip', host(a.ip), 'class', a.class, 'lease', a.lease, 'kind', a.kind, 'holder', a.holder, 'node', a.node,
    'placement_id', a.placement_id
)
from unnest($2::text[]::inet[]) as t (ip)
cross join lateral (select * from addresses a where a.grid_id = $1 and a.ip = t.ip offset 0) a
order by a.ip
