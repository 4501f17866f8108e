-- node_by_name
select jsonb_build_object('id', id, 'name', name, 'number', number)
from nodes where grid_id = $1 and name = $2
