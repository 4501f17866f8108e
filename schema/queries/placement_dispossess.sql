-- placement_dispossess
-- A placement whose address is another's now.
update placements
set ip = null, lease = null, lease_state = 'none', state = 'pending', revision = $2, endpoint_revision = $2
where id = $1
