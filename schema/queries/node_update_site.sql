-- node_update_site
-- Counts 1 when something changed that peers must know. What is not known now keeps
-- its last value.
update nodes
set region = $2,
    public_ip = coalesce($3::text::inet, public_ip),
    private_ip = coalesce($4::text::inet, private_ip),
    behind_nat = coalesce($5, behind_nat),
    revision = $6
where id = $1
    and (region, public_ip, private_ip, behind_nat) is distinct from
        ($2, coalesce($3::text::inet, public_ip), coalesce($4::text::inet, private_ip), coalesce($5, behind_nat))
