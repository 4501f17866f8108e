-- node_keys_differ
select exists (
    select from nodes where id = $1 and (key, next_key) is distinct from ($2::text, $3::text)
)
