-- What our addresses are measured against: the free list that one would write by
-- hand, a row an address, as many as a grid of the default subnet has. The keys
-- are host parts, as numbers: pgbench cannot quote what it keeps in variables.
create table free_list (
    host bigint primary key,
    holder bigint,
    leased_at timestamptz
) with (fillfactor = 50);
insert into free_list (host) select generate_series(1, 8190);
create index free_list_free on free_list (host) where holder is null;
vacuum analyze free_list;
