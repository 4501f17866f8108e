-- node_pinger
-- What is asked of node $2 before it is to ping another one; under the grid's lock.
select jsonb_build_object(
    'id', n.id, 'connected', s.node_id is not null and s.closed_at is null,
    'protocol', case when s.protocol_epoch = s.epoch then s.protocol end,
    'agent_version', n.facts -> 'agent_version',
    'open', (
        select count(*) from pings p
        where p.grid_id = n.grid_id and p.node_id = n.id and p.state in ('queued', 'started'))
)
from nodes n
left join sessions s on s.node_id = n.id
where n.grid_id = $1 and n.name = $2
