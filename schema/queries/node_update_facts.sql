-- node_update_facts
-- Networks that are not known now stay.
update nodes set facts = jsonb_strip_nulls(jsonb_build_object('networks', facts -> 'networks')) || $2
where id = $1 and facts <> jsonb_strip_nulls(jsonb_build_object('networks', facts -> 'networks')) || $2
