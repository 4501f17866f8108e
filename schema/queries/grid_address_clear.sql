-- grid_address_clear
delete from addresses where grid_id = $1
