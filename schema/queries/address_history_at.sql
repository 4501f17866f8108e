-- address_history_at
-- The last step of an address up to a moment. Each month opens with the leases in
-- force, so the month of the moment knows; before a grid's first step in a month
-- the one before does. Where nothing was written for more than a month, because the
-- Master was away, the last step before that stands.
select l.id, jsonb_build_object(
    'address', host(l.ip), 'event', l.event, 'lease', l.lease, 'kind', l.kind, 'holder', l.holder, 'node', l.node,
    'actor', l.actor, 'reason', l.reason, 'at', iso(l.at), 'revision', l.revision
)
from grids g
join pools p on p.grid_id = g.id
cross join lateral (
    (
        select * from ledger l
        where l.grid_id = g.id and l.ip = $2::text::inet and l.at <= $3::text::timestamptz
            and l.at >= least(ledger_month($3::text::timestamptz), p.ledger_opened)
        order by l.at desc, l.id desc
        limit 1
    )
    union all
    (
        select * from ledger l
        where l.grid_id = g.id and l.ip = $2::text::inet and l.at <= $3::text::timestamptz
        order by l.at desc, l.id desc
        limit 1
    )
    limit 1
) l
where g.name = $1
