-- node_by_engine
select jsonb_build_object('id', id, 'name', name, 'number', number)
from nodes where grid_id = $1 and engine_id = $2
