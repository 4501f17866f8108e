-- placement_delete
delete from placements where id = $1
