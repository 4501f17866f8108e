-- replica_remove
delete from replicas where id = $1
