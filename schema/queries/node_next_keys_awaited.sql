-- node_next_keys_awaited
-- Grids in which a node waits until its peers know its next key.
select distinct grid_id from nodes where next_key is not null and not next_key_known
