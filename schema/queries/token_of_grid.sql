-- token_of_grid
select jsonb_build_object(
    'id', t.id, 'kind', t.kind, 'grid_id', t.grid_id, 'node_id', t.node_id,
    'generation', t.generation, 'used', t.used_at is not null
)
from tokens t
join grids g on g.id = t.grid_id
where g.name = $1 and t.kind = 'join'
