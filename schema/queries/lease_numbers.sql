-- lease_numbers
-- Takes the next `$2` lease numbers; answers the last one.
update grids set lease_last = lease_last + $2 where id = $1 returning lease_last
