-- stack_delete_empty
-- A stack on its way out ends with its last service.
delete from stacks
where id = $1 and removing and not exists (select from services where stack_id = $1)
