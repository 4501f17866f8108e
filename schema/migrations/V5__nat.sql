-- Whether a node's public address is on none of its interfaces. A replica of the version before neither writes
-- nor tells it.
alter table nodes
    add column behind_nat boolean;
