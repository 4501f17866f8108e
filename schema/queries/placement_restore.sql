-- placement_restore
update placements
set lease_state = 'held', lease_reason = null, revision = $2, endpoint_revision = $2
where id = any($1)
