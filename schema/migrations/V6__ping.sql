-- Pings of one node by another, which prove a way at the moment of asking. They are no commands: those belong to
-- placements, and a replica of the version before would send what it does not know to agents that do not know it either.
create table pings (
    id bigint generated always as identity constraint pings_pkey primary key,
    grid_id bigint not null constraint pings_grid_fkey references grids on delete cascade,
    -- Who sends the echoes, and who answers them.
    node_id bigint not null constraint pings_node_fkey references nodes on delete cascade,
    peer_id bigint not null constraint pings_peer_fkey references nodes on delete cascade,
    count smallint not null constraint pings_count_check check (count between 1 and 20),
    state text not null default 'queued' constraint pings_state_check
        check (state in ('queued', 'started', 'done', 'failed', 'interrupted', 'expired')),
    -- What came of it, as the node told.
    result jsonb,
    error text,
    revision bigint not null,
    created_at timestamptz not null default clock_timestamp(),
    -- Until when it is to be started, and once it is, to end.
    expires_at timestamptz not null,
    finished_at timestamptz,
    constraint pings_peer_check check (peer_id <> node_id),
    constraint pings_result_check check ((state = 'done') = (result is not null)),
    constraint pings_finished_check check ((state in ('queued', 'started')) = (finished_at is null))
);
create index pings_open on pings (grid_id, node_id, id) where state in ('queued', 'started');
create index pings_node on pings (node_id);
create index pings_peer on pings (peer_id);
create index pings_age on pings (created_at);

-- Which protocol the agent of a connection speaks. A replica of the version before does not write it, so it counts only
-- where it is of the same connection.
alter table sessions
    add column protocol integer,
    add column protocol_epoch bigint;
