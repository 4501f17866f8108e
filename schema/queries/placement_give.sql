-- placement_give
-- Placements that get another address.
update placements p
set ip = given.ip::inet, lease = given.lease, lease_state = 'held', lease_reason = coalesce(given.reason, lease_reason),
    waiting = null, state = 'pending', revision = $5, endpoint_revision = $5
from unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[]) as given (placement, ip, lease, reason)
where p.id = given.placement
