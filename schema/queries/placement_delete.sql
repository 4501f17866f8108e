-- placement_delete
delete from placements where id = any($1)
