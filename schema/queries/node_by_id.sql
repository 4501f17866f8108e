-- node_by_id
select id from nodes where grid_id = $1 and id = $2
