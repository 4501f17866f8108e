-- node_delete
delete from nodes where id = $1
