-- deploy_fail
update deploys set state = 'error', reason = $2, finished_at = clock_timestamp() where id = $1
