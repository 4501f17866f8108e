-- service_insert
insert into services (grid_id, stack_id, name, label, spec, instances)
values ($1, $2, $3, $4, $5, $6)
returning id
