-- placement_lease
update placements set ip = lent.ip::inet, lease = lent.lease
from unnest($1::bigint[], $2::text[], $3::bigint[]) as lent (placement, ip, lease)
where placements.id = lent.placement
