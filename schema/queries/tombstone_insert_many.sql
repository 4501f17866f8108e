-- tombstone_insert_many
-- What every agent of the grid knew and is no more, or one node's agent each.
insert into tombstones (grid_id, kind, id, node_id, revision)
select $1, $2, gone.id, gone.node_id, $4 from unnest($3::bigint[], $5::bigint[]) as gone (id, node_id)
on conflict do nothing
