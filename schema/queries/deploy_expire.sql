-- deploy_expire
update deploys
set state = 'error', reason = 'not all instances were running in time', finished_at = clock_timestamp()
where state = 'ongoing' and deadline_at < clock_timestamp()
