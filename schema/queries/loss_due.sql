-- loss_due
-- Grids with a node whose time has come, or comes next; `in_s` is negative when it has. Nobody
-- is lost before this replica ($1) and Postgres have been there for $2 and the
-- grid's grace: after an outage everybody is late.
select n.grid_id, extract(epoch from min(greatest(
    s.lose_at,
    pg_postmaster_start_time() + ($2::bigint + g.grace_ms) * interval '1 millisecond',
    clock_timestamp() + ($2::bigint + g.grace_ms - $1::bigint) * interval '1 millisecond'
)) - clock_timestamp())::float8 as in_s
from sessions s
join nodes n on n.id = s.node_id
join grids g on g.id = n.grid_id
where s.lose_at is not null
group by n.grid_id
order by 2
limit 1000
