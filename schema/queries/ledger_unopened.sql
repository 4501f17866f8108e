-- ledger_unopened
-- Grids whose ledger has not begun this month.
select id from grids where ledger_opened < ledger_month(clock_timestamp()) order by id limit 100
