-- address_pick
select host(ip), class, lease from address_pick($1, $2)
