-- tombstone_insert_many
-- What every agent of the grid knew and is no more.
insert into tombstones (grid_id, kind, id, revision)
select $1, $2, id, $4 from unnest($3::bigint[]) as gone (id)
on conflict do nothing
