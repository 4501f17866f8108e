-- ledger_unopened
-- Grids whose ledger has not begun this month.
select grid_id from pools where ledger_opened < ledger_month(clock_timestamp()) order by grid_id limit 100
