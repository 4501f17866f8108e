-- replica_alive
-- Holds on to this replica's row: while a session opens, nobody sweeps it.
select id from replicas where id = $1 for key share
