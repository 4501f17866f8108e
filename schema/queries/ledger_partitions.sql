-- ledger_partitions
-- The partitions of this month and the next.
select ledger_partition_make(ledger_month(clock_timestamp())),
    ledger_partition_make(ledger_month(ledger_month(clock_timestamp()) + interval '32 days'))
