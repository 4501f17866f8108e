-- node_next_keys_known
-- Nodes of grid $1 for whose next key every connected peer says that it is ready.
with connected as (
    select b.id, b.peers
    from nodes b
    join sessions s on s.node_id = b.id and s.closed_at is null
    where b.grid_id = $1 and b.key is not null
),
ready as (
    select (peer ->> 'node')::bigint as node, peer ->> 'next_key' as key, count(distinct b.id) as many
    from connected b
    cross join jsonb_array_elements(b.peers) peer
    where peer ->> 'next_key' is not null and (peer ->> 'node')::bigint <> b.id
    group by 1, 2
)
select a.id
from nodes a
left join ready on ready.node = a.id and ready.key = a.next_key
where a.grid_id = $1 and a.next_key is not null and not a.next_key_known
    and coalesce(ready.many, 0) = (select count(*) from connected b where b.id <> a.id)
