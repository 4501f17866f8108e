-- placement_remove
update placements
set desired = 'removed', revision = $2, endpoint_revision = $2
where id = any($1) and desired <> 'removed'
