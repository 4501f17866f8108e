-- node_insert
insert into nodes (grid_id, name, number, engine_id, facts, region, public_ip, private_ip, behind_nat, revision)
values ($1, $2, $3, $4, $5, $6, $7::text::inet, $8::text::inet, $9, $10)
returning id
