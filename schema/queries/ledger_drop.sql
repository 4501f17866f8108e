-- ledger_drop
-- Drops the months that ended more than $1 months ago, once every grid has begun
-- a later one.
select ledger_drop($1)
