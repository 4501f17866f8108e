-- grid_revisions
select id, revision from grids where id = any($1)
