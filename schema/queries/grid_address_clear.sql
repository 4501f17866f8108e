-- grid_address_clear
with queued as (delete from releases where grid_id = $1)
delete from addresses where grid_id = $1
