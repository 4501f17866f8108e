-- stack_remove
update stacks set removing = true where id = $1
