-- service_state
update services set state = $2 where id = $1
