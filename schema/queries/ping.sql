-- ping
select 1
