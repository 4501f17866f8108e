-- session_epoch
select epoch from sessions where node_id = $1
