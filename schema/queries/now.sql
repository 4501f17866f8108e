-- now
select iso(clock_timestamp())
