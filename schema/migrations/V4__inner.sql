-- The addresses of nodes inside sealed paths. A replica of the version before makes grids with the default
-- and tells agents of none, which is how they know the default.
alter table grids
    add column inner_subnet cidr not null default '100.127.81.0/24',
    add constraint grids_inner_subnet_check check (
        family(inner_subnet) = 4 and masklen(inner_subnet) = 24 and not inner_subnet && supernet);
