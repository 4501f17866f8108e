-- node_key_taken
-- Whether another node of grid $1 than $2 has one of the keys $3.
select exists (
    select from nodes
    where grid_id = $1 and id <> $2 and (key = any($3::text[]) or next_key = any($3::text[]))
)
