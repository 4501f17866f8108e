-- One cycle: a lease and a release, each a transaction of its own.
update free_list set holder = :client_id, leased_at = clock_timestamp()
where host = (
    select host from free_list where holder is null order by host limit 1 for update skip locked
)
returning host \gset
update free_list set holder = null, leased_at = null where host = :host;
