-- node_next_keys_known
-- Nodes of grid $1 for whose next key every connected peer says that it is ready.
select a.id
from nodes a
where a.grid_id = $1 and a.next_key is not null and not a.next_key_known
    and not exists (
        select from nodes b
        join sessions s on s.node_id = b.id and s.closed_at is null
        where b.grid_id = a.grid_id and b.id <> a.id and b.key is not null
            and not b.peers @> jsonb_build_array(jsonb_build_object('node', a.id, 'next_key', a.next_key)))
