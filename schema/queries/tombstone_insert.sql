-- tombstone_insert
insert into tombstones (grid_id, kind, id, node_id, revision) values ($1, $2, $3, $4, $5)
on conflict do nothing
