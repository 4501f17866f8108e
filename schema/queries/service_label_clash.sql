-- service_label_clash
-- A service with this label, one whose instances would answer to it, or one that
-- would itself answer to the label of one of this service's instances.
select label, state = 'removing'
from services
where grid_id = $1
    and (label in ($2, $3)
        or (left(label, length($2) + 1) = $2 || '-' and substr(label, length($2) + 2) ~ '^[1-9][0-9]*$'))
order by label
limit 1
