-- node_metrics
-- What is counted of each node, for whoever collects it; of one that is away only
-- that it is.
select jsonb_build_object(
    'grid', g.name, 'node', n.name, 'connected', s.node_id is not null,
    'drops', case when s.node_id is not null then coalesce(n.measures -> 'drops', '{}') else '{}' end,
    'peers', (
        select coalesce(jsonb_object_agg(kind, many), '{}')
        from (
            select case when peer ->> 'unreachable' is not null then 'unreachable'
                else peer #>> '{path,kind}' end as kind, count(*) as many
            from jsonb_array_elements(n.peers) peer
            join nodes other on other.id = (peer ->> 'node')::bigint
            where s.node_id is not null
            group by 1
        ) counted
    )
)
from nodes n
join grids g on g.id = n.grid_id
left join sessions s on s.node_id = n.id and s.closed_at is null
order by g.name, n.number
