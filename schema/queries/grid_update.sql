-- grid_update
update grids
set trusted_subnets = $2::text[]::cidr[], settings_revision = $3
where id = $1
