-- node_update_facts
update nodes set facts = $2 where id = $1 and facts <> $2
