-- node_trust_next_keys
update nodes set next_key_known = true, revision = $2 where id = any($1)
