-- grid_lock_by_id
select jsonb_build_object(
    'id', id, 'name', name, 'subnet', subnet, 'supernet', supernet, 'revision', revision,
    'initial_size', initial_size, 'inner_subnet', inner_subnet, 'trusted_subnets', trusted_subnets
)
from grids where id = $1
for no key update
