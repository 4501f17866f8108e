-- stack_insert
insert into stacks (grid_id, name, source, version) values ($1, $2, $3, $4) returning id
