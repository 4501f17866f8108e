-- address_release
update addresses
set lease = null, placement_id = null, released_revision = $2
where placement_id = $1
