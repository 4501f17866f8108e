-- node_update_site
-- Counts 1 when something changed that peers must know. An address that is not
-- known now keeps its last value.
update nodes
set region = $2,
    public_ip = coalesce($3::text::inet, public_ip),
    private_ip = coalesce($4::text::inet, private_ip),
    revision = $5
where id = $1
    and (region, public_ip, private_ip) is distinct from
        ($2, coalesce($3::text::inet, public_ip), coalesce($4::text::inet, private_ip))
