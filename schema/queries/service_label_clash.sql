-- service_label_clash
-- A service whose instances would answer to this label, or that would itself
-- answer to the label of one of this service's instances.
select label
from services
where grid_id = $1
    and (label = $3 or (left(label, length($2) + 1) = $2 || '-' and substr(label, length($2) + 2) ~ '^[1-9][0-9]*$'))
order by label
limit 1
