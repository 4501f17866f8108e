-- node_report_peers
-- Merges paths $3 into those that the node of session ($1, $2) reported before; paths to nodes that are no more are
-- left out. The node's row is locked.
update nodes set peers = (
    select coalesce(jsonb_agg(peer order by id), '[]')
    from (
        select distinct on (id) id, peer
        from (
            select (peer ->> 'node')::bigint as id, peer, 1 as age from jsonb_array_elements($3) peer
            union all
            select (peer ->> 'node')::bigint, peer, 2 from jsonb_array_elements(nodes.peers) peer
        ) reported
        where exists (select from nodes other where other.id = reported.id and other.grid_id = nodes.grid_id)
        order by id, age
    ) latest
)
where id = $1
    and exists (select from sessions where node_id = $1 and epoch = $2 and closed_at is null)
