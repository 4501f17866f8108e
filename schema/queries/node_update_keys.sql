-- node_update_keys
update nodes set key = $2, next_key = $3, next_key_known = false, revision = $4 where id = $1
