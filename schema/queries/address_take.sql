-- address_take
insert into addresses (grid_id, ip, class, lease, placement_id)
select $1, taken.ip::inet, taken.class, taken.lease, taken.placement
from unnest($2::text[], $3::smallint[], $4::bigint[], $5::bigint[]) as taken (ip, class, lease, placement)
on conflict (grid_id, ip) do update
set lease = excluded.lease, placement_id = excluded.placement_id, released_revision = null
where addresses.lease is null
