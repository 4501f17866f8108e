-- token_insert
insert into tokens (kind, grid_id, node_id) values ($1, $2, $3) returning id
