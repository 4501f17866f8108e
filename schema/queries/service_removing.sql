-- service_removing
update services set state = 'removing' where id = $1
