-- The truth of the Master. Every constraint has a name, and the API turns each
-- name into an error for the client. Rows that agents must know carry the grid's
-- revision at which they were last changed.

-- Times in answers: ISO 8601 in UTC with milliseconds.
create function iso(t timestamptz) returns text
    language sql immutable parallel safe
    return to_char(t at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"');

-- The history that revisions count in: another after a restore or a promotion.
create function timeline() returns text
    language sql stable
    return (select system_identifier from pg_control_system()) || '/'
        || (select timeline_id from pg_control_checkpoint());

create table replicas (
    id uuid constraint replicas_pkey primary key,
    started_at timestamptz not null,
    renewed_at timestamptz not null
);

create sequence grid_vni maxvalue 16777215 cycle;

create table grids (
    id bigint generated always as identity constraint grids_pkey primary key,
    name text not null constraint grids_name_key unique,
    subnet cidr not null,
    supernet cidr not null,
    trusted_subnets cidr[] not null default '{}',
    -- 24 bits, RFC 7348 section 5.
    vni integer not null default nextval('grid_vni') constraint grids_vni_key unique,
    initial_size smallint not null constraint grids_initial_size_check check (initial_size between 1 and 7),
    grace_ms integer not null constraint grids_grace_check check (grace_ms between 0 and 86400000),
    revision bigint not null default 1,
    -- Tombstones up to here are gone; an agent behind it is answered from 0.
    horizon bigint not null default 0,
    -- The revision at which the columns above that agents know last changed.
    settings_revision bigint not null default 1,
    lease_last bigint not null default 0,
    created_at timestamptz not null default clock_timestamp()
);

create table nodes (
    id bigint generated always as identity constraint nodes_pkey primary key,
    grid_id bigint not null constraint nodes_grid_fkey references grids,
    name text not null,
    number smallint not null constraint nodes_number_check check (number between 1 and 254),
    engine_id text not null,
    facts jsonb not null,
    region text not null,
    public_ip inet,
    private_ip inet,
    -- Paths to peers, as the node last reported them.
    peers jsonb not null default '[]',
    epoch bigint not null default 0,
    revision bigint not null,
    created_at timestamptz not null default clock_timestamp(),
    constraint nodes_number_key unique (grid_id, number),
    constraint nodes_name_key unique (grid_id, name),
    constraint nodes_engine_key unique (grid_id, engine_id)
);
create index nodes_revision on nodes (grid_id, revision);

-- What a signed token stands for: it names a row and a generation, and raising the
-- generation revokes all that were signed before.
create table tokens (
    id uuid constraint tokens_pkey primary key default gen_random_uuid(),
    kind text not null constraint tokens_kind_check check (kind in ('join', 'node')),
    grid_id bigint not null constraint tokens_grid_fkey references grids on delete cascade,
    node_id bigint constraint tokens_node_fkey references nodes on delete cascade,
    generation bigint not null default 1,
    -- The first use of a node's token ends the join token's use for its engine.
    used_at timestamptz,
    constraint tokens_holder_key unique nulls not distinct (grid_id, node_id),
    constraint tokens_node_check check ((kind = 'node') = (node_id is not null))
);

-- The latest connection of each node that ever connected.
create table sessions (
    node_id bigint constraint sessions_pkey primary key constraint sessions_node_fkey references nodes on delete cascade,
    epoch bigint not null,
    -- No foreign key: a replica's row may be swept before its sessions are.
    replica_id uuid not null,
    opened_at timestamptz not null,
    closed_at timestamptz
);
create index sessions_replica on sessions (replica_id) where closed_at is null;

create table stacks (
    id bigint generated always as identity constraint stacks_pkey primary key,
    grid_id bigint not null constraint stacks_grid_fkey references grids,
    name text not null,
    source text,
    version text,
    -- It ends when the last container of its services is gone.
    removing boolean not null default false,
    revision bigint not null default 1,
    created_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    constraint stacks_name_key unique (grid_id, name)
);

create table services (
    id bigint generated always as identity constraint services_pkey primary key,
    grid_id bigint not null constraint services_grid_fkey references grids,
    stack_id bigint constraint services_stack_fkey references stacks,
    name text not null,
    -- `stack-service` or `service`: its label in the grid's DNS.
    label text not null,
    spec jsonb not null,
    -- What runs: the description that was deployed last, and its revision.
    deployed_spec jsonb,
    deployed_revision bigint,
    instances integer not null constraint services_instances_check check (instances between 0 and 8190),
    -- initialized, running or removing.
    state text not null default 'initialized',
    revision bigint not null default 1,
    created_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    constraint services_label_key unique (grid_id, label)
);
create index services_stack on services (stack_id);

create table placements (
    id bigint generated always as identity constraint placements_pkey primary key,
    grid_id bigint not null constraint placements_grid_fkey references grids,
    service_id bigint not null constraint placements_service_fkey references services,
    instance integer not null,
    node_id bigint not null constraint placements_node_fkey references nodes,
    desired text not null constraint placements_desired_check check (desired in ('running', 'stopped', 'removed')),
    service_revision bigint not null,
    ip inet,
    lease bigint,
    state text not null default 'pending',
    health text not null default 'unknown',
    -- The revision of the container that the node reported.
    running_revision bigint,
    container_id text,
    container_name text,
    error text,
    -- For the node alone, and for every agent of the grid.
    revision bigint not null,
    endpoint_revision bigint not null,
    updated_at timestamptz not null default clock_timestamp(),
    constraint placements_lease_check check ((ip is null) = (lease is null))
);
-- An instance runs once; while it moves, the one that goes is 'removed'.
create unique index placements_instance_key on placements (service_id, instance) where desired <> 'removed';
create index placements_revision on placements (grid_id, revision);
create index placements_endpoint_revision on placements (grid_id, endpoint_revision);
create index placements_node on placements (node_id);

-- Addresses that are, or once were, leased. One that has no row was never used.
create table addresses (
    grid_id bigint not null constraint addresses_grid_fkey references grids,
    ip inet not null,
    class smallint not null constraint addresses_class_check check (class between 1 and 3),
    -- The number of the current lease; none for a free address.
    lease bigint,
    placement_id bigint constraint addresses_placement_fkey references placements,
    -- Who holds a lease that belongs to no placement.
    reservation text,
    -- The revision of the release that freed it: the longest free goes first.
    released_revision bigint,
    constraint addresses_pkey primary key (grid_id, ip),
    constraint addresses_lease_key unique (grid_id, lease),
    constraint addresses_holder_check check (
        (lease is null) = (placement_id is null and reservation is null)
        and (lease is null) = (released_revision is not null)
    )
);
create index addresses_free on addresses (grid_id, class, released_revision, ip) where lease is null;
create unique index addresses_placement_key on addresses (placement_id) where placement_id is not null;

-- Append-only: one row for each step of a lease's life.
create table ledger (
    id bigint generated always as identity constraint ledger_pkey primary key,
    grid_id bigint not null,
    ip inet not null,
    lease bigint not null,
    -- `stack/service-n` of a placement, or the reservation's name.
    holder text not null,
    node_id bigint,
    event text not null constraint ledger_event_check check (event in ('leased', 'released')),
    reason text not null,
    revision bigint not null,
    at timestamptz not null default clock_timestamp()
);
create index ledger_address on ledger (grid_id, ip, id);

create table deploys (
    id bigint generated always as identity constraint deploys_pkey primary key,
    service_id bigint not null constraint deploys_service_fkey references services on delete cascade,
    service_revision bigint not null,
    state text not null default 'ongoing' constraint deploys_state_check check (state in ('ongoing', 'success', 'error')),
    reason text,
    created_at timestamptz not null default clock_timestamp(),
    deadline_at timestamptz not null,
    finished_at timestamptz
);
create index deploys_ongoing on deploys (deadline_at) where state = 'ongoing';
create index deploys_service on deploys (service_id, id);

create table commands (
    id bigint generated always as identity constraint commands_pkey primary key,
    grid_id bigint not null constraint commands_grid_fkey references grids,
    node_id bigint not null constraint commands_node_fkey references nodes on delete cascade,
    placement_id bigint not null constraint commands_placement_fkey references placements on delete cascade,
    kind text not null constraint commands_kind_check check (kind in ('restart')),
    state text not null default 'queued' constraint commands_state_check
        check (state in ('queued', 'started', 'done', 'failed', 'interrupted', 'expired')),
    error text,
    revision bigint not null,
    created_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null,
    finished_at timestamptz
);
create index commands_queued on commands (grid_id, node_id, id) where state = 'queued';

-- What is gone, for agents that knew it. `node_id` is set for what only one node knew.
create table tombstones (
    grid_id bigint not null constraint tombstones_grid_fkey references grids on delete cascade,
    kind text not null constraint tombstones_kind_check check (kind in ('node', 'endpoint', 'placement')),
    id bigint not null,
    node_id bigint,
    revision bigint not null,
    at timestamptz not null default clock_timestamp(),
    constraint tombstones_pkey primary key (grid_id, revision, kind, id)
);
create index tombstones_age on tombstones (at);

-- Answers to requests that carried an Idempotency-Key, kept for a day.
create table idempotency_keys (
    key text not null,
    -- Who asked, so that two callers never share a key.
    actor text not null,
    request_hash bytea not null,
    status smallint not null,
    body jsonb not null,
    at timestamptz not null default clock_timestamp(),
    constraint idempotency_keys_pkey primary key (actor, key)
);
create index idempotency_keys_age on idempotency_keys (at);
