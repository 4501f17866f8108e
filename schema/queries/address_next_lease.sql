-- address_next_lease
-- The next lease number, for an address that was chosen by name.
update pools set lease_last = lease_last + 1 where grid_id = $1 returning lease_last
