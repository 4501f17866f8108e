-- reservation_batch
select g, went, in_force, kinds, fits, ips, classes, leases, at, stamped
from reservation_batch($1, $2, $3, $4::text[]::inet[], $5, $6, $7)
