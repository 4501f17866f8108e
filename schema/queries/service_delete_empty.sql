-- service_delete_empty
delete from services
where id = $1 and state = 'removing' and not exists (select from placements where service_id = $1)
