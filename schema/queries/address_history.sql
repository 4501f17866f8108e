-- address_history
-- The steps of an address, the latest first, by page.
select l.id, jsonb_build_object(
    'address', host(l.ip), 'event', l.event, 'lease', l.lease, 'kind', l.kind, 'holder', l.holder, 'node', l.node,
    'actor', l.actor, 'reason', l.reason, 'at', iso(l.at), 'revision', l.revision
)
from grids g
join ledger l on l.grid_id = g.id and l.ip = $2::text::inet
where g.name = $1 and ($3::bigint is null or l.id < $3)
order by l.id desc
limit $4
