-- stack_update
update stacks
set source = $2, version = $3, revision = revision + 1, updated_at = clock_timestamp()
where id = $1
