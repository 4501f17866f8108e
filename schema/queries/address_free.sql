-- address_free
select address_free($1, $2, $3, $4, $5::text[]::inet[])
