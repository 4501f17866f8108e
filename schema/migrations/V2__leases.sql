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
create index placements_waiting on placements (grid_id, waiting) where lease_state = 'waiting';

-- Who holds an address: one placement, one reservation or one node. What changes
-- them holds the grid's lock and has read the rows that it names, so foreign keys
-- would only check again, row by row. Checks would be parsed again by every
-- statement, which costs as much as the rest of it; only the functions below write
-- here, and `address_faults` finds what a check would refuse.
alter table addresses
    drop constraint addresses_grid_fkey,
    drop constraint addresses_placement_fkey,
    drop constraint addresses_holder_check,
    drop constraint addresses_class_check,
    -- The grid's count makes lease numbers unique; an index on them would only
    -- mislead the planner.
    drop constraint addresses_lease_key,
    -- placement, reservation or node.
    add column kind text,
    -- `stack/service-n` of a placement, the name of a reservation or of a node.
    add column holder text,
    add column node text,
    add column node_id bigint,
    add column leased_at timestamptz,
    -- The order of the release that freed it: the longest free goes first.
    add column released bigint,
    -- The placement that had it before it was freed, and may still be lost and return.
    add column former bigint;
-- Nothing that a lease changes is indexed, but for placements and nodes: the new
-- version of a row finds room beside the old one, and no index learns of it.
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
    set (fillfactor = 50);
create unique index addresses_node_key on addresses (node_id) where node_id is not null;

-- Base of a grid's addresses, with which a host part makes an address.
create function grid_base(subnet cidr) returns inet
    language sql immutable parallel safe
    return set_masklen(network(subnet)::inet, 32);

-- Host parts that may be held, from 1 up: not the network's own address, nor the
-- broadcast address.
create function grid_hosts(subnet cidr) returns bigint
    language sql immutable parallel safe
    return (1::bigint << (32 - masklen(subnet))) - 2;

-- A grid's addresses: where to look for free ones, and how many there are. Read and
-- written under the lock of the grid's row, but a row of its own: it is narrow, and
-- whoever waits for the lock finds the locked row as it was.
create table pools (
    grid_id bigint constraint pools_pkey primary key constraint pools_grid_fkey references grids on delete cascade,
    -- Of the grid's subnet, which never changes.
    base inet not null,
    hosts bigint not null,
    -- By class, the host part that was never used and goes next; one beyond the
    -- last when all were.
    fresh bigint[] not null default '{257, 255, 254}',
    -- By class, the release order up to which the free were given out, and the
    -- first of the queue's row where the search goes on.
    freed bigint[] not null default '{0, 0, 0}',
    heads bigint[] not null default '{0, 0, 0}',
    lease_last bigint not null,
    release_last bigint not null default 0,
    -- Addresses that are held, nodes' included.
    held bigint not null default 0,
    -- Placements that wait for an address.
    waiting bigint not null default 0,
    waiting_last bigint not null default 0,
    -- The month of the ledger that begins with this grid's leases.
    ledger_opened timestamptz not null default '-infinity'
) with (fillfactor = 50);
insert into pools (grid_id, base, hosts, lease_last)
select id, grid_base(subnet), grid_hosts(subnet), lease_last from grids;
alter table grids drop column lease_last;

-- Free addresses in the order of their release, some in a row: the first address's
-- order, and the others' are those that follow. Where one was leased other than
-- from here there is a null, and no row has only those: so there are no more rows
-- than free addresses, and one at each head. Rows before a pool's head are done
-- with. Without foreign key, as addresses.
create table releases (
    grid_id bigint not null,
    class smallint not null,
    first bigint not null,
    ips inet[] not null,
    constraint releases_pkey primary key (grid_id, class, first)
);

-- Nodes hold the addresses of their numbers.
with numbered as (
    select n.grid_id, n.id as node_id, n.name, g.base + n.number as ip,
        g.lease_last + row_number() over (partition by n.grid_id order by n.number) as lease
    from nodes n join pools g on g.grid_id = n.grid_id
)
insert into addresses (grid_id, ip, class, lease, kind, holder, node, node_id, leased_at)
select grid_id, ip, 3, lease, 'node', name, name, node_id, clock_timestamp() from numbered
on conflict (grid_id, ip) do update
set lease = excluded.lease, kind = excluded.kind, holder = excluded.holder, node = excluded.node,
    node_id = excluded.node_id, leased_at = excluded.leased_at, released = null;
update pools g set
    lease_last = g.lease_last + (select count(*) from nodes n where n.grid_id = g.grid_id),
    release_last = coalesce((select max(a.released) from addresses a where a.grid_id = g.grid_id), 0),
    held = (select count(*) from addresses a where a.grid_id = g.grid_id and a.lease is not null),
    waiting = (select count(*) from placements p where p.grid_id = g.grid_id and p.lease_state = 'waiting'),
    waiting_last = coalesce((select max(p.waiting) from placements p where p.grid_id = g.grid_id), 0);
insert into releases (grid_id, class, first, ips)
select grid_id, class, released, array[ip] from addresses where lease is null;

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

-- The functions below read a grid's pool once, count in it, and write it back once.
create type pool_picked as (pool pools, ips inet[], classes smallint[], leases bigint[], former bigint[]);
create type pool_held as (pool pools, robbed bigint[]);

create function pool_read(g bigint) returns pools
    language plpgsql as $$
declare
    p pools;
begin
    select * into strict p from pools where grid_id = g;
    return p;
end $$;

create function pool_write(p pools) returns void
    language plpgsql as $$
begin
    update pools
    set fresh = p.fresh, freed = p.freed, heads = p.heads, lease_last = p.lease_last,
        release_last = p.release_last, held = p.held, ledger_opened = p.ledger_opened
    where grid_id = p.grid_id;
end $$;

-- Begins the ledger's current month with the leases in force, before the first
-- step of the month.
create function pool_open_ledger(p pools, revision bigint, now timestamptz) returns pools
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
        pool_open_ledger.revision, month
    from addresses a
    where a.grid_id = p.grid_id and a.lease is not null
    order by a.ip;
    p.ledger_opened := month;
    return p;
end $$;

-- Chooses the next `wanted` free addresses and gives them the next lease numbers:
-- by class, within a class the never used before the longest free. `former` are
-- placements that had some of them and may be lost.
create function pool_pick(p pools, wanted bigint) returns pool_picked
    language plpgsql as $$
declare
    ips inet[] := '{}';
    classes smallint[] := '{}';
    former bigint[] := '{}';
    n int := 0;
    host bigint;
    next_ip inet;
    found_ips inet[];
    found_former bigint[];
    last bigint;
    head bigint;
begin
    for c in 1..3 loop
        host := p.fresh[c];
        while n < wanted and host between 1 and p.hosts loop
            next_ip := p.base + host;
            -- Class 1 steps over .0 and .255, class 2 from one to the other, class
            -- 3 goes down.
            host := host + case c
                when 1 then case when host % 256 = 254 then 3 else 1 end
                when 2 then case when host % 256 = 255 then 1 else 255 end
                else -1 end;
            -- One may have been asked for by name.
            perform from addresses a where a.grid_id = p.grid_id and a.ip = next_ip;
            if not found then
                n := n + 1;
                ips[n] := next_ip;
                classes[n] := c;
            end if;
        end loop;
        p.fresh[c] := host;
        exit when n = wanted;
        select array_agg(f.ip order by f.released), array_agg(f.former) filter (where f.former is not null),
            max(f.released), max(f.first)
        into found_ips, found_former, last, head
        from (
            select a.ip, a.former, a.released, r.first
            from releases r
            cross join lateral unnest(r.ips) with ordinality as u (ip, i)
            cross join lateral (select * from addresses a where a.grid_id = p.grid_id and a.ip = u.ip offset 0) a
            where r.grid_id = p.grid_id and r.class = c and r.first >= p.heads[c] and r.first + u.i - 1 > p.freed[c]
            order by r.first, u.i
            limit wanted - n
        ) f;
        if last is not null then
            ips := ips || found_ips;
            classes := classes || array_fill(c::smallint, array[cardinality(found_ips)]);
            former := former || found_former;
            n := cardinality(ips);
        end if;
        if n < wanted then
            -- The class has no more.
            last := p.release_last;
            head := p.release_last + 1;
        end if;
        -- What is done with is deleted in portions, each from a known place on: a search for
        -- it would walk over what was deleted before.
        if head / 256 > p.heads[c] / 256 then
            delete from releases r
            where r.grid_id = p.grid_id and r.class = c and r.first >= p.heads[c] / 256 * 256 and r.first < head;
        end if;
        p.freed[c] := last;
        p.heads[c] := head;
        exit when n = wanted;
    end loop;
    if n < wanted then
        raise exception 'grid % counts % held addresses, and of % free ones % were found', p.grid_id, p.held, wanted, n;
    end if;
    p.lease_last := p.lease_last + n;
    return row(p, ips, classes, array(select p.lease_last - n + i from generate_series(1, n) i), former)::pool_picked;
end $$;

-- Takes free addresses that are leased other than by `pool_pick` out of the queue.
create function releases_leave(p pools, ips inet[]) returns void
    language plpgsql as $$
begin
    with leaving as materialized (
        select r.class, r.first, array_agg(a.ip) as ips
        from unnest(ips) as t (ip)
        cross join lateral (select * from addresses a where a.grid_id = p.grid_id and a.ip = t.ip offset 0) a
        cross join lateral (
            select r.class, r.first from releases r
            where r.grid_id = p.grid_id and r.class = a.class and r.first <= a.released
            order by r.first desc
            limit 1
        ) r
        where a.lease is null and a.released > p.freed[a.class]
        group by r.class, r.first
    ), staying as materialized (
        select l.class, l.first, array(
            select case when u.ip <> all(l.ips) then u.ip end
            from unnest(r.ips) with ordinality as u (ip, i) order by u.i
        ) as ips
        from leaving l
        cross join lateral (
            select r.ips from releases r where r.grid_id = p.grid_id and r.class = l.class and r.first = l.first offset 0
        ) r
    ), emptied as (
        delete from releases r using staying s
        where r.grid_id = p.grid_id and r.class = s.class and r.first = s.first and array_remove(s.ips, null) = '{}'
    )
    update releases r set ips = s.ips from staying s
    where r.grid_id = p.grid_id and r.class = s.class and r.first = s.first and array_remove(s.ips, null) <> '{}';
end $$;

-- Takes addresses from the lost placements that remember them, for good; answers
-- which those were.
create function placements_rob(g bigint, ips inet[], owners bigint[]) returns bigint[]
    language plpgsql as $$
declare
    robbed bigint[];
begin
    with lost as (
        update placements l set lease_state = 'taken'
        where l.id in (select a.former from unnest(ips) as t (ip) join addresses a on a.grid_id = g and a.ip = t.ip)
            and l.lease_state = 'lost' and l.ip = any(ips) and l.id <> all(owners)
        returning l.id
    )
    select coalesce(array_agg(id order by id), '{}') into robbed from lost;
    return robbed;
end $$;

-- Gives chosen addresses to their holders, each for a reason, and names the lost
-- placements that remember one of the addresses and now lose it for good.
create function pool_hold(
    p pools, revision bigint, event text, actor text, reasons text[], kind text,
    ips inet[], classes smallint[], leases bigint[], holders text[], nodes text[], placements bigint[], node_ids bigint[]
) returns pool_held
    language plpgsql as $$
declare
    now timestamptz := clock_timestamp();
    changed bigint;
    robbed bigint[] := placements_rob(p.grid_id, ips, array_remove(placements, null));
begin
    p := pool_open_ledger(p, revision, now);
    perform releases_leave(p, ips);
    with given as materialized (
        select * from unnest(ips, classes, leases, holders, nodes, placements, node_ids, reasons)
            as t (ip, class, lease, holder, node, placement, node_id, reason)
    ), written as (
        insert into ledger (grid_id, ip, lease, kind, holder, node, event, actor, reason, revision, at)
        select p.grid_id, t.ip, t.lease, pool_hold.kind, t.holder, t.node, pool_hold.event, pool_hold.actor,
            t.reason, pool_hold.revision, now
        from given t
    ), leased as (
        insert into addresses as a (grid_id, ip, class, lease, kind, holder, node, placement_id, node_id, leased_at)
        select p.grid_id, t.ip, t.class, t.lease, pool_hold.kind, t.holder, t.node, t.placement, t.node_id, now
        from given t
        on conflict (grid_id, ip) do update
        set lease = excluded.lease, kind = excluded.kind, holder = excluded.holder, node = excluded.node,
            placement_id = excluded.placement_id, node_id = excluded.node_id, leased_at = excluded.leased_at,
            released = null, former = null
        where a.lease is null
        returning 1
    )
    select count(*) into changed from leased;
    if changed <> cardinality(ips) then
        raise exception 'of % addresses, % were free', cardinality(ips), changed;
    end if;
    p.held := p.held + changed;
    return row(p, robbed)::pool_held;
end $$;

-- Ends the leases of addresses, all of which are held.
create function pool_free(p pools, revision bigint, actor text, reason text, ips inet[]) returns pools
    language plpgsql as $$
declare
    now timestamptz := clock_timestamp();
    ended inet[];
    classes smallint[];
    changed bigint;
begin
    p := pool_open_ledger(p, revision, now);
    -- A subquery of its own, so that each address is one look into the key: a
    -- join's plan would depend on how full the table was when it was made.
    with ending as materialized (
        select t.ip, a.class, a.lease, a.kind, a.holder, a.node
        from unnest(ips) as t (ip)
        cross join lateral (select * from addresses a where a.grid_id = p.grid_id and a.ip = t.ip offset 0) a
        where a.lease is not null
    ), written as (
        insert into ledger (grid_id, ip, lease, kind, holder, node, event, actor, reason, revision, at)
        select p.grid_id, e.ip, e.lease, e.kind, e.holder, e.node, 'released', pool_free.actor, pool_free.reason,
            pool_free.revision, now
        from ending e
    )
    select array_agg(e.ip order by e.class, e.ip), array_agg(e.class order by e.class, e.ip) into ended, classes
    from ending e;
    changed := addresses_end(p, ended, classes);
    if changed is distinct from cardinality(ips)::bigint then
        raise exception 'of % addresses, % were held', cardinality(ips), changed;
    end if;
    p.held := p.held - changed;
    p.release_last := p.release_last + changed;
    return p;
end $$;

-- Frees held addresses, which are sorted by class, and puts them into the queue;
-- answers how many it freed.
create function addresses_end(p pools, ips inet[], classes smallint[]) returns bigint
    language plpgsql as $$
declare
    changed bigint;
begin
    update addresses a
    set lease = null, kind = null, holder = null, node = null, former = a.placement_id, placement_id = null,
        node_id = null, leased_at = null, released = p.release_last + e.n
    from unnest(ips) with ordinality as e (ip, n)
    where a.grid_id = p.grid_id and a.ip = e.ip and a.lease is not null;
    get diagnostics changed = row_count;
    -- Rows of the queue are short, for each is unpacked whole.
    insert into releases (grid_id, class, first, ips)
    select p.grid_id, e.class, p.release_last + min(e.n), array_agg(e.ip order by e.n)
    from unnest(ips, classes) with ordinality as e (ip, class, n)
    group by e.class, e.n / 32;
    return changed;
end $$;

-- What statements call, each of them under the grid's lock.

create function ledger_open(g bigint, now timestamptz) returns void
    language plpgsql as $$
begin
    perform pool_write(pool_open_ledger(pool_read(g), (select revision from grids where id = g), now));
end $$;

-- Nothing, if there are fewer than `wanted`.
create function address_pick(g bigint, wanted bigint)
    returns table (ip inet, class smallint, lease bigint)
    language plpgsql as $$
declare
    p pools := pool_read(g);
    chosen pool_picked;
begin
    if p.hosts - p.held >= wanted then
        chosen := pool_pick(p, wanted);
        perform pool_write(chosen.pool);
        return query select * from unnest(chosen.ips, chosen.classes, chosen.leases);
    end if;
end $$;

create function address_hold(
    g bigint, revision bigint, event text, actor text, reasons text[], kind text,
    ips inet[], classes smallint[], leases bigint[], holders text[], nodes text[], placements bigint[], node_ids bigint[]
) returns bigint[]
    language plpgsql as $$
declare
    done pool_held;
begin
    done := pool_hold(pool_read(g), revision, event, actor, reasons, kind,
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
-- first, of which each names another address. `went` is false, and nothing is done,
-- if placements wait for an address and the caller is not one that serves them. A
-- release may name the lease that it means; `in_force` is the lease that was there,
-- if any, and `kinds` what held it: what is no reservation, or another lease, stays.
-- Who takes gets all that it asks for or none, which `fits` tells; the addresses are
-- in the order of the requests. `stamped` is the revision from which on lost
-- placements whose addresses were taken are out of every directory; 0 if there was
-- none.
--
-- This is the hot path: what one statement costs, whatever it does, is what several
-- addresses cost. So what `pool_free` and `pool_hold` do for all kinds of holders
-- stands here again for reservations alone, with one write to the ledger.
create function reservation_batch(
    grid_name text, serves boolean, actor text,
    wanted inet[], wanted_leases bigint[], counts bigint[], names text[],
    out g bigint, out went boolean, out in_force bigint[], out kinds text[],
    out fits boolean[], out ips text[], out classes smallint[], out leases bigint[], out at text, out stamped bigint
)
    language plpgsql as $$
declare
    p pools;
    at_revision bigint;
    now timestamptz;
    ending inet[];
    ending_classes smallint[];
    ending_leases bigint[];
    ending_holders text[];
    room bigint;
    holders text[] := '{}';
    chosen pool_picked;
    robbed bigint[];
    changed bigint;
begin
    select t.id, t.revision into g, at_revision from grids t where t.name = grid_name for no key update;
    if g is null then
        return;
    end if;
    select * into p from pools t where t.grid_id = g;
    went := serves or p.waiting = 0;
    if not went then
        return;
    end if;
    now := clock_timestamp();
    if p.ledger_opened < ledger_month(now) then
        p := pool_open_ledger(p, at_revision, now);
    end if;
    in_force := '{}';
    kinds := '{}';
    if wanted <> '{}' then
        with found as materialized (
            select w.n, a.ip, a.class, a.lease, a.kind, a.holder,
                a.kind = 'reservation' and coalesce(w.lease, a.lease) = a.lease as ends
            from unnest(wanted, wanted_leases) with ordinality as w (ip, lease, n)
            left join lateral (select * from addresses a where a.grid_id = g and a.ip = w.ip offset 0) a on true
        )
        select array_agg(f.lease order by f.n), array_agg(f.kind order by f.n),
            array_agg(f.ip order by f.class, f.ip) filter (where f.ends),
            array_agg(f.class order by f.class, f.ip) filter (where f.ends),
            array_agg(f.lease order by f.class, f.ip) filter (where f.ends),
            array_agg(f.holder order by f.class, f.ip) filter (where f.ends)
        into in_force, kinds, ending, ending_classes, ending_leases, ending_holders
        from found f;
        if ending is not null then
            changed := addresses_end(p, ending, ending_classes);
            if changed <> cardinality(ending) then
                raise exception 'of % addresses, % were held', cardinality(ending), changed;
            end if;
            p.held := p.held - changed;
            p.release_last := p.release_last + changed;
        end if;
    end if;
    room := p.hosts - p.held;
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
        p := chosen.pool;
        classes := chosen.classes;
        leases := chosen.leases;
        if chosen.former <> '{}' then
            robbed := placements_rob(g, chosen.ips, '{}');
        end if;
        insert into addresses as a (grid_id, ip, class, lease, kind, holder, leased_at)
        select g, t.ip, t.class, t.lease, 'reservation', t.holder, now
        from unnest(chosen.ips, classes, leases, holders) as t (ip, class, lease, holder)
        on conflict (grid_id, ip) do update
        set lease = excluded.lease, kind = excluded.kind, holder = excluded.holder, leased_at = excluded.leased_at,
            released = null, former = null
        where a.lease is null;
        get diagnostics changed = row_count;
        if changed <> cardinality(holders) then
            raise exception 'of % addresses, % were free', cardinality(holders), changed;
        end if;
        p.held := p.held + changed;
        ips := array(select host(t.ip) from unnest(chosen.ips) as t (ip));
        if robbed <> '{}' then
            update grids t set revision = t.revision + 1 where t.id = g returning t.revision into stamped;
            insert into tombstones (grid_id, kind, id, revision)
            select g, 'endpoint', id, stamped from unnest(robbed) as gone (id)
            on conflict do nothing;
        end if;
    end if;
    insert into ledger (grid_id, ip, lease, kind, holder, event, actor, reason, revision, at)
    select g, t.ip, t.lease, 'reservation', t.holder, 'released', reservation_batch.actor, 'released by its holder',
        at_revision, now
    from unnest(ending, ending_leases, ending_holders) as t (ip, lease, holder)
    union all
    select g, t.ip, t.lease, 'reservation', t.holder, 'leased', reservation_batch.actor, 'reserved',
        at_revision, now
    from unnest(chosen.ips, leases, holders) as t (ip, lease, holder);
    perform pool_write(p);
    at := iso(now);
end $$;

-- What is wrong with a grid's addresses, in words; nothing, if they are as every
-- function here leaves them.
create function address_faults(g bigint) returns setof text
    language sql stable as $$
    select a.ip || ' is neither held nor free'
    from addresses a
    where a.grid_id = g and not (
        num_nulls(a.lease, a.kind, a.holder, a.leased_at) in (0, 4)
        and (a.lease is null) = (a.released is not null)
        and (a.kind is not distinct from 'placement') = (a.placement_id is not null)
        and (a.kind is not distinct from 'node') = (a.node_id is not null)
        and (a.kind is null or a.kind in ('placement', 'reservation', 'node'))
        and a.class between 1 and 3
    )
    union all
    select a.ip || ' is free and in no queue'
    from addresses a join pools p on p.grid_id = a.grid_id
    where a.grid_id = g and a.lease is null and not exists (
        select from releases r
        where r.grid_id = g and r.class = a.class and r.first >= p.heads[a.class] and a.released > p.freed[a.class]
            and r.ips[a.released - r.first + 1] = a.ip
    )
    union all
    select 'a row of the queue has ' || count(u.ip) || ' addresses, of which ' || count(a) || ' are free'
    from pools p
    join releases r on r.grid_id = p.grid_id and r.first >= p.heads[r.class]
    cross join lateral unnest(r.ips) with ordinality as u (ip, i)
    left join addresses a on a.grid_id = p.grid_id and a.ip = u.ip and a.released = r.first + u.i - 1
    where p.grid_id = g and r.first + u.i - 1 > p.freed[r.class]
    group by r.class, r.first, p.heads
    -- Of the row at the head, the rest may have left by name.
    having count(u.ip) <> count(a) or count(a) = 0 and r.first > p.heads[r.class]
    union all
    select 'the pool counts ' || p.held || ' held addresses, and ' || count(a) || ' are'
    from pools p left join addresses a on a.grid_id = p.grid_id and a.lease is not null
    where p.grid_id = g
    group by p.held
    having p.held <> count(a)
$$;

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
        -- The queue comes in the order of its key: what is wanted of it is read, not sorted.
        execute format('alter function %s set enable_sort = off', f);
        -- What is switched off counts as dear, and what is dear would be compiled first.
        execute format('alter function %s set jit = off', f);
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
            and not exists (select from pools where ledger_opened <= part.month and ledger_opened > '-infinity') then
            execute format('drop table %I', part.name);
            dropped := dropped + 1;
        end if;
    end loop;
    return dropped;
end $$;
