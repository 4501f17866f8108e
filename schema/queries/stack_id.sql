-- stack_id
select id, removing from stacks where grid_id = $1 and name = $2
