-- placement_wait
-- Placements that are to have an address and get none now; they are served in this order.
with counted as (
    update pools set waiting = waiting + cardinality($2::bigint[]), waiting_last = waiting_last + cardinality($2::bigint[])
    where grid_id = $1
    returning waiting_last - cardinality($2::bigint[]) as last
)
update placements p
set ip = null, lease = null, lease_state = 'waiting', waiting = counted.last + late.n, lease_reason = late.reason,
    state = 'pending', revision = $4, endpoint_revision = $4
from counted, unnest($2::bigint[], $3::text[]) with ordinality as late (placement, reason, n)
where p.id = late.placement
