-- node_turn_key
-- Asks a node for a new key.
update nodes set key_turn = key_turn + 1, revision = $2 where id = $1
