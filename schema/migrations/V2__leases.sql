-- The whole life of a lease (infra/adr/0004-leases.md). Replicas of the version
-- before do not know these tables: this one precedes the first release.

-- Placements. `ip` and `lease` stay while the node is lost, so that a node that
-- returns finds what it had.
alter table placements
    add column lease_state text not null default 'held' constraint placements_lease_state_check
        check (lease_state in ('held', 'lost', 'taken', 'waiting', 'none')),
    -- Why it has this address and not the one that it had before.
    add column lease_reason text,
    -- The order in which those that wait for an address began to.
    add column waiting bigint,
    drop constraint placements_lease_check;
update placements set lease_state = 'waiting', waiting = id where lease is null;
alter table placements
    add constraint placements_lease_check check (
        (ip is null) = (lease is null)
        and (lease is null) = (lease_state in ('waiting', 'none'))
        and (waiting is null) = (lease_state <> 'waiting')
    );
create index placements_lost on placements (grid_id, ip) where lease_state = 'lost';
create index placements_waiting on placements (grid_id, waiting) where lease_state = 'waiting';

-- Who holds an address: one placement, one reservation or one node. What changes
-- them holds the grid's lock and has read the rows that it names, so foreign keys
-- would only check again, row by row.
alter table addresses
    drop constraint addresses_grid_fkey,
    drop constraint addresses_placement_fkey,
    drop constraint addresses_holder_check,
    -- The grid's count makes lease numbers unique; an index on them would only
    -- mislead the planner.
    drop constraint addresses_lease_key,
    add column kind text constraint addresses_kind_check check (kind in ('placement', 'reservation', 'node')),
    -- `stack/service-n` of a placement, the name of a reservation or of a node.
    add column holder text,
    add column node text,
    add column node_id bigint,
    add column leased_at timestamptz,
    -- The order of the release that freed it: the longest free goes first.
    add column released bigint;
drop index addresses_free;
update addresses a
set kind = 'placement', leased_at = clock_timestamp(), node = n.name,
    holder = coalesce(k.name || '/', '') || s.name || '-' || p.instance
from placements p
join services s on s.id = p.service_id
join nodes n on n.id = p.node_id
left join stacks k on k.id = s.stack_id
where p.id = a.placement_id;
update addresses a set released = r.n
from (
    select grid_id, ip, row_number() over (partition by grid_id order by released_revision, ip) as n
    from addresses where lease is null
) r
where r.grid_id = a.grid_id and r.ip = a.ip;
alter table addresses
    drop column released_revision,
    drop column reservation,
    add constraint addresses_holder_check check (
        num_nulls(lease, kind, holder, leased_at) in (0, 4)
        and (lease is null) = (released is not null)
        and (kind is not distinct from 'placement') = (placement_id is not null)
        and (kind is not distinct from 'node') = (node_id is not null)
    );
create unique index addresses_free on addresses (grid_id, class, released) where lease is null;
create unique index addresses_node_key on addresses (node_id) where node_id is not null;
-- Half empty pages: a lease and its release find room beside the row's old version.
alter table addresses set (fillfactor = 50);
alter table grids set (fillfactor = 50);

-- Where to look for free addresses, and how many there are.
alter table grids
    -- By class, the host part that was never used and goes next; one beyond the
    -- last when all were.
    add column fresh bigint[] not null default '{257, 255, 254}',
    -- By class, the release order up to which the free were given out.
    add column freed bigint[] not null default '{0, 0, 0}',
    add column release_last bigint not null default 0,
    -- Addresses that are held, nodes' included.
    add column held bigint not null default 0,
    add column waiting_last bigint not null default 0,
    -- Placements that wait for an address.
    add column waiting bigint not null default 0,
    -- The month of the ledger that begins with this grid's leases.
    add column ledger_opened timestamptz not null default '-infinity';

-- Nodes hold the addresses of their numbers.
with numbered as (
    select n.grid_id, n.id as node_id, n.name, set_masklen(network(g.subnet)::inet, 32) + n.number as ip,
        g.lease_last + row_number() over (partition by n.grid_id order by n.number) as lease
    from nodes n join grids g on g.id = n.grid_id
)
insert into addresses (grid_id, ip, class, lease, kind, holder, node, node_id, leased_at)
select grid_id, ip, 3, lease, 'node', name, name, node_id, clock_timestamp() from numbered
on conflict (grid_id, ip) do update
set lease = excluded.lease, kind = excluded.kind, holder = excluded.holder, node = excluded.node,
    node_id = excluded.node_id, leased_at = excluded.leased_at, released = null;
update grids g set
    lease_last = g.lease_last + (select count(*) from nodes n where n.grid_id = g.id),
    release_last = coalesce((select max(a.released) from addresses a where a.grid_id = g.id), 0),
    held = (select count(*) from addresses a where a.grid_id = g.id and a.lease is not null),
    waiting = (select count(*) from placements p where p.grid_id = g.id and p.lease_state = 'waiting'),
    waiting_last = coalesce((select max(p.waiting) from placements p where p.grid_id = g.id), 0);

-- When a node whose session ended is lost, and since when it is.
alter table sessions
    add column lose_at timestamptz,
    add column lost_at timestamptz,
    -- The run of the agent that has the session, and those that it took over from.
    add column instance uuid,
    add column superseded uuid[] not null default '{}',
    -- Which of that run's connections it is.
    add column connection bigint not null default 0,
    add constraint sessions_lose_check check (lose_at is null or closed_at is not null),
    add constraint sessions_lost_check check (lost_at is null or closed_at is not null);
update sessions set lose_at = clock_timestamp() where closed_at is not null;
create index sessions_lose on sessions (lose_at) where lose_at is not null;

-- The ledger, a partition a month, each of which opens with the leases in force.
alter table ledger rename to ledger_v1;
alter table ledger_v1 drop constraint ledger_pkey;
drop index ledger_address;
create table ledger (
    id bigint generated always as identity,
    grid_id bigint not null,
    ip inet not null,
    lease bigint not null,
    kind text not null,
    -- `stack/service-n` of a placement, the name of a reservation or of a node.
    holder text not null,
    node text,
    -- leased, released, restored, opened. No checks: they would be read anew by every
    -- statement, and only the functions below write here.
    event text not null,
    actor text not null,
    reason text not null,
    revision bigint not null,
    at timestamptz not null
) partition by range (at);
create index ledger_address on ledger (grid_id, ip, id);

create function ledger_month(t timestamptz) returns timestamptz
    language sql immutable parallel safe
    return date_trunc('month', t at time zone 'utc') at time zone 'utc';

-- Makes the partition of a month, if it is not there.
create function ledger_partition_make(month timestamptz) returns void
    language plpgsql as $$
declare
    name text := 'ledger_' || to_char(month at time zone 'utc', 'YYYY_MM');
begin
    -- Two that make it at once would meet in the catalogue.
    perform pg_advisory_xact_lock(7041779);
    execute format('create table if not exists %I partition of ledger for values from (%L) to (%L)',
        name, month, ledger_month(month + interval '32 days'));
end $$;

select ledger_partition_make(ledger_month(month))
from generate_series(
    ledger_month(least((select min(at) from ledger_v1), clock_timestamp())),
    ledger_month(clock_timestamp() + interval '32 days'), interval '1 month') month;
insert into ledger (grid_id, ip, lease, kind, holder, node, event, actor, reason, revision, at)
select l.grid_id, l.ip, l.lease, 'placement', l.holder, n.name, l.event, 'master', l.reason, l.revision, l.at
from ledger_v1 l left join nodes n on n.id = l.node_id
order by l.id;
drop table ledger_v1;

-- The functions below count in a grid's row, its pool of addresses: read once under
-- the grid's lock, written back once.
create type pool_picked as (pool grids, ips inet[], classes smallint[], leases bigint[]);
create type pool_held as (pool grids, robbed bigint[]);

create function pool_read(g bigint) returns grids
    language plpgsql as $$
declare
    p grids;
begin
    select * into strict p from grids where id = g;
    return p;
end $$;

-- All of it null, if there is no such grid.
create function pool_lock(grid_name text) returns grids
    language plpgsql as $$
declare
    p grids;
begin
    select * into p from grids where name = grid_name for no key update;
    return p;
end $$;

create function pool_write(p grids) returns void
    language plpgsql as $$
begin
    update grids
    set fresh = p.fresh, freed = p.freed, lease_last = p.lease_last, release_last = p.release_last,
        held = p.held, ledger_opened = p.ledger_opened
    where id = p.id;
end $$;

-- Base of a grid's addresses, with which a host part makes an address.
create function grid_base(subnet cidr) returns inet
    language sql immutable parallel safe
    return set_masklen(network(subnet)::inet, 32);

-- Host parts that may be held, from 1 up: not the network's own address, nor the
-- broadcast address.
create function grid_hosts(subnet cidr) returns bigint
    language sql immutable parallel safe
    return (1::bigint << (32 - masklen(subnet))) - 2;

-- Begins the ledger's current month with the leases in force, before the first
-- step of the month.
create function pool_open_ledger(p grids, now timestamptz) returns grids
    language plpgsql as $$
declare
    month timestamptz := ledger_month(now);
begin
    if p.ledger_opened >= month then
        return p;
    end if;
    if to_regclass('ledger_' || to_char(month at time zone 'utc', 'YYYY_MM')) is null then
        perform ledger_partition_make(month);
    end if;
    insert into ledger (grid_id, ip, lease, kind, holder, node, event, actor, reason, revision, at)
    select a.grid_id, a.ip, a.lease, a.kind, a.holder, a.node, 'opened', 'master', 'held since ' || iso(a.leased_at),
        p.revision, month
    from addresses a
    where a.grid_id = p.id and a.lease is not null
    order by a.ip;
    p.ledger_opened := month;
    return p;
end $$;

-- Chooses the next `wanted` free addresses and gives them the next lease numbers:
-- by class, within a class the never used before the longest free.
create function pool_pick(p grids, wanted bigint) returns pool_picked
    language plpgsql as $$
declare
    base inet := grid_base(p.subnet);
    hosts bigint := grid_hosts(p.subnet);
    ips inet[] := '{}';
    classes smallint[] := '{}';
    leases bigint[] := '{}';
    n int := 0;
    host bigint;
    next_ip inet;
    longest_free inet[];
    last_released bigint;
begin
    for c in 1..3 loop
        host := p.fresh[c];
        while n < wanted and host between 1 and hosts loop
            next_ip := base + host;
            -- Class 1 steps over .0 and .255, class 2 from one to the other, class
            -- 3 goes down.
            host := host + case c
                when 1 then case when host % 256 = 254 then 3 else 1 end
                when 2 then case when host % 256 = 255 then 1 else 255 end
                else -1 end;
            -- One may have been asked for by name.
            perform from addresses a where a.grid_id = p.id and a.ip = next_ip;
            if not found then
                n := n + 1;
                ips[n] := next_ip;
                classes[n] := c;
            end if;
        end loop;
        p.fresh[c] := host;
        exit when n = wanted;
        select array_agg(f.ip order by f.released), max(f.released) into longest_free, last_released
        from (
            select a.ip, a.released from addresses a
            where a.grid_id = p.id and a.class = c and a.lease is null and a.released > p.freed[c]
            order by a.released
            limit wanted - n
        ) f;
        if last_released is not null then
            ips := ips || longest_free;
            classes := classes || array_fill(c::smallint, array[cardinality(longest_free)]);
            n := cardinality(ips);
            p.freed[c] := last_released;
        end if;
        exit when n = wanted;
    end loop;
    if n < wanted then
        raise exception 'grid % counts % held addresses, and of % free ones % were found', p.id, p.held, wanted, n;
    end if;
    for i in 1..n loop
        leases[i] := p.lease_last + i;
    end loop;
    p.lease_last := p.lease_last + n;
    return row(p, ips, classes, leases)::pool_picked;
end $$;

-- Gives chosen addresses to their holders, and names the lost placements that
-- remember one of the addresses and now lose it for good.
create function pool_hold(
    p grids, revision bigint, event text, actor text, reason text, kind text,
    ips inet[], classes smallint[], leases bigint[], holders text[], nodes text[], placements bigint[], node_ids bigint[]
) returns pool_held
    language plpgsql as $$
declare
    now timestamptz := clock_timestamp();
    changed bigint;
    robbed bigint[];
begin
    p := pool_open_ledger(p, now);
    with given as materialized (
        select * from unnest(ips, classes, leases, holders, nodes, placements, node_ids)
            as t (ip, class, lease, holder, node, placement, node_id)
    ), written as (
        insert into ledger (grid_id, ip, lease, kind, holder, node, event, actor, reason, revision, at)
        select p.id, t.ip, t.lease, pool_hold.kind, t.holder, t.node, pool_hold.event, pool_hold.actor,
            pool_hold.reason, pool_hold.revision, now
        from given t
    ), lost as (
        update placements l set lease_state = 'taken'
        where l.grid_id = p.id and l.lease_state = 'lost' and l.ip = any(ips)
            and l.id <> all(array_remove(coalesce(pool_hold.placements, '{}'), null))
        returning l.id
    ), leased as (
        insert into addresses as a (grid_id, ip, class, lease, kind, holder, node, placement_id, node_id, leased_at)
        select p.id, t.ip, t.class, t.lease, pool_hold.kind, t.holder, t.node, t.placement, t.node_id, now
        from given t
        on conflict (grid_id, ip) do update
        set lease = excluded.lease, kind = excluded.kind, holder = excluded.holder, node = excluded.node,
            placement_id = excluded.placement_id, node_id = excluded.node_id, leased_at = excluded.leased_at,
            released = null
        where a.lease is null
        returning 1
    )
    select (select count(*) from leased), coalesce((select array_agg(id order by id) from lost), '{}')
    into changed, robbed;
    if changed <> cardinality(ips) then
        raise exception 'of % addresses, % were free', cardinality(ips), changed;
    end if;
    p.held := p.held + changed;
    return row(p, robbed)::pool_held;
end $$;

-- Ends the leases of addresses, all of which are held.
create function pool_free(p grids, revision bigint, actor text, reason text, ips inet[]) returns grids
    language plpgsql as $$
declare
    now timestamptz := clock_timestamp();
    changed bigint;
begin
    p := pool_open_ledger(p, now);
    -- A subquery of its own, so that each address is one look into the key: a
    -- join's plan would depend on how full the table was when it was made.
    with ending as materialized (
        select t.ip, a.lease, a.kind, a.holder, a.node, p.release_last + row_number() over (order by t.ip) as released
        from unnest(ips) as t (ip)
        cross join lateral (select * from addresses a where a.grid_id = p.id and a.ip = t.ip offset 0) a
        where a.lease is not null
    ), written as (
        insert into ledger (grid_id, ip, lease, kind, holder, node, event, actor, reason, revision, at)
        select p.id, e.ip, e.lease, e.kind, e.holder, e.node, 'released', pool_free.actor, pool_free.reason,
            pool_free.revision, now
        from ending e
    )
    update addresses a
    set lease = null, kind = null, holder = null, node = null, placement_id = null, node_id = null,
        leased_at = null, released = e.released
    from ending e
    where a.grid_id = p.id and a.ip = e.ip;
    get diagnostics changed = row_count;
    if changed <> cardinality(ips) then
        raise exception 'of % addresses, % were held', cardinality(ips), changed;
    end if;
    p.held := p.held - changed;
    p.release_last := p.release_last + changed;
    return p;
end $$;

-- What statements call, each of them under the grid's lock.

create function ledger_open(g bigint, now timestamptz) returns void
    language plpgsql as $$
begin
    perform pool_write(pool_open_ledger(pool_read(g), now));
end $$;

-- Nothing, if there are fewer than `wanted`.
create function address_pick(g bigint, wanted bigint)
    returns table (ip inet, class smallint, lease bigint)
    language plpgsql as $$
declare
    p grids := pool_read(g);
    chosen pool_picked;
begin
    if grid_hosts(p.subnet) - p.held >= wanted then
        chosen := pool_pick(p, wanted);
        perform pool_write(chosen.pool);
        return query select * from unnest(chosen.ips, chosen.classes, chosen.leases);
    end if;
end $$;

create function address_hold(
    g bigint, revision bigint, event text, actor text, reason text, kind text,
    ips inet[], classes smallint[], leases bigint[], holders text[], nodes text[], placements bigint[], node_ids bigint[]
) returns bigint[]
    language plpgsql as $$
declare
    done pool_held;
begin
    done := pool_hold(pool_read(g), revision, event, actor, reason, kind,
        ips, classes, leases, holders, nodes, placements, node_ids);
    perform pool_write(done.pool);
    return done.robbed;
end $$;

create function address_free(g bigint, revision bigint, actor text, reason text, ips inet[]) returns void
    language plpgsql as $$
begin
    perform pool_write(pool_free(pool_read(g), revision, actor, reason, ips));
end $$;

-- A batch of reservations, one call, which takes the grid's lock: the releases
-- first. `went` is false, and nothing is done, if placements wait for an address
-- and the caller is not one that serves them. A release may name the
-- lease that it means; `in_force` is the lease that was there, if any, and `kinds`
-- what held it: what is no reservation, or another lease, stays. Who takes gets
-- all that it asks for or none, which `fits` tells; the addresses are in the order
-- of the requests. `stamped` is the revision from which on lost placements whose
-- addresses were taken are out of every directory; 0 if there was none.
create function reservation_batch(
    grid_name text, serves boolean, actor text,
    wanted inet[], wanted_leases bigint[], counts bigint[], names text[],
    out g bigint, out went boolean, out in_force bigint[], out kinds text[],
    out fits boolean[], out ips text[], out classes smallint[], out leases bigint[], out at text, out stamped bigint
)
    language plpgsql as $$
declare
    p grids := pool_lock(grid_name);
    ending inet[];
    room bigint;
    holders text[] := '{}';
    chosen pool_picked;
    done pool_held;
begin
    g := p.id;
    went := serves or p.waiting = 0;
    if went is not true then
        return;
    end if;
    in_force := '{}';
    kinds := '{}';
    if wanted <> '{}' then
        select array_agg(a.lease order by w.n), array_agg(a.kind order by w.n),
            array_agg(distinct w.ip) filter (where a.kind = 'reservation' and coalesce(w.lease, a.lease) = a.lease)
        into in_force, kinds, ending
        from unnest(wanted, wanted_leases) with ordinality as w (ip, lease, n)
        left join lateral (select * from addresses a where a.grid_id = g and a.ip = w.ip offset 0) a on true;
        if ending is not null then
            p := pool_free(p, p.revision, actor, 'released by its holder', ending);
        end if;
    end if;
    room := grid_hosts(p.subnet) - p.held;
    fits := '{}';
    for r in 1..cardinality(counts) loop
        fits[r] := counts[r] <= room;
        if fits[r] then
            room := room - counts[r];
            holders := holders || array_fill(names[r], array[counts[r]::int]);
        end if;
    end loop;
    ips := '{}';
    classes := '{}';
    leases := '{}';
    stamped := 0;
    if holders <> '{}' then
        chosen := pool_pick(p, cardinality(holders));
        classes := chosen.classes;
        leases := chosen.leases;
        done := pool_hold(chosen.pool, p.revision, 'leased', actor, 'reserved', 'reservation',
            chosen.ips, classes, leases, holders, null, null, null);
        p := done.pool;
        ips := array(select host(ip) from unnest(chosen.ips) as u (ip));
        if done.robbed <> '{}' then
            update grids set revision = revision + 1 where id = g returning revision into stamped;
            insert into tombstones (grid_id, kind, id, revision)
            select g, 'endpoint', id, stamped from unnest(done.robbed) as gone (id)
            on conflict do nothing;
        end if;
    end if;
    perform pool_write(p);
    at := iso(clock_timestamp());
end $$;

-- Each of these works on the rows that it names. What a plan was made for says
-- nothing about how many rows there are when it runs: plans are made once, and
-- never scan the whole.
do $$
declare
    f regprocedure;
begin
    for f in
        select p.oid from pg_proc p
        where p.pronamespace = current_schema()::regnamespace
            and p.proname in ('address_pick', 'address_hold', 'address_free', 'reservation_batch')
    loop
        execute format('alter function %s set plan_cache_mode = force_generic_plan', f);
        execute format('alter function %s set enable_seqscan = off', f);
        execute format('alter function %s set enable_hashjoin = off', f);
        execute format('alter function %s set enable_mergejoin = off', f);
        execute format('alter function %s set enable_bitmapscan = off', f);
    end loop;
end $$;

-- Drops the ledger's months that ended more than `keep` months ago, unless a grid
-- has not begun a later one; answers how many.
create function ledger_drop(keep integer) returns bigint
    language plpgsql
    -- Whoever writes the ledger waits behind this: rather another time.
    set lock_timeout = '200ms'
    as $$
declare
    part record;
    dropped bigint := 0;
begin
    for part in
        select c.relname as name, to_date(substr(c.relname, 8), 'YYYY_MM')::timestamp at time zone 'utc' as month
        from pg_inherits i
        join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'ledger'::regclass
    loop
        if part.month < ledger_month(clock_timestamp() - make_interval(months => keep))
            and not exists (select from grids where ledger_opened <= part.month and ledger_opened > '-infinity') then
            execute format('drop table %I', part.name);
            dropped := dropped + 1;
        end if;
    end loop;
    return dropped;
end $$;
