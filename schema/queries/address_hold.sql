-- address_hold
-- Answers the placements that lose what they remembered.
select address_hold($1, $2, $3, $4, $5, $6, $7::text[]::inet[], $8, $9, $10, $11, $12, $13)
