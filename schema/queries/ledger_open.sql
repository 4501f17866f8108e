-- ledger_open
select ledger_open($1, clock_timestamp())
