-- node_report_peers
update nodes set peers = $2 where id = $1
