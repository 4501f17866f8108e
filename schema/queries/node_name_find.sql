-- node_name_find
-- The name itself, or the first of name-2, name-3 .. that is free.
select name
from (
    select case n when 1 then $2 else $2 || '-' || n end as name, n
    from generate_series(1, 255) n
) candidate
where not exists (select from nodes where grid_id = $1 and nodes.name = candidate.name)
order by n
limit 1
