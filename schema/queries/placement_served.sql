-- placement_served
-- So many no longer wait; how many do, and how many addresses are free.
update grids set waiting = waiting - $2 where id = $1
returning waiting, (2 ^ (32 - masklen(subnet)))::bigint - 2 - held
