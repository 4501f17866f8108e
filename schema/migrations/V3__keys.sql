-- The nodes' public keys for sealed paths, and what they measure. A replica of the version before neither
-- writes nor tells them.
alter table nodes
    add column key text,
    -- What the node will use once its peers are ready for it.
    add column next_key text,
    -- Every connected peer is ready for it.
    add column next_key_known boolean not null default false,
    -- How often a change of its key was asked for.
    add column key_turn bigint not null default 0,
    -- What the node last measured, and when.
    add column measures jsonb not null default '{}',
    add column measured_at timestamptz,
    add constraint nodes_next_key_check check (next_key is null or key is not null and next_key <> key);
create index nodes_next_key on nodes (grid_id) where next_key is not null and not next_key_known;
