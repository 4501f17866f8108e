-- session_standing
-- How connection $3 of run $2 of an agent stands to the latest one of its node:
-- whether another run, which is connected, took over from its own, and whether a
-- later connection of the same run opened before.
select jsonb_build_object(
    'duplicate', closed_at is null and $2::uuid = any(superseded) and instance <> $2,
    'late', instance = $2 and connection > $3)
from sessions where node_id = $1
