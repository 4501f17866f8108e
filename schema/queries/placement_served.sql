-- placement_served
-- So many no longer wait; how many do, and how many addresses are free.
update pools set waiting = waiting - $2 where grid_id = $1
returning waiting, hosts - held
