-- token_show
select jsonb_build_object(
    'id', id, 'kind', kind, 'grid_id', grid_id, 'node_id', node_id,
    'generation', generation, 'used', used_at is not null
)
from tokens where id = $1
