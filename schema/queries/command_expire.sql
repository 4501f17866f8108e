-- command_expire
update commands
set state = 'expired', error = 'the node did not start it in time', finished_at = clock_timestamp()
where state = 'queued' and expires_at < clock_timestamp()
