-- node_site_differs
select exists (
    select from nodes
    where id = $1
        and (region, public_ip, private_ip, behind_nat) is distinct from
            ($2, coalesce($3::text::inet, public_ip), coalesce($4::text::inet, private_ip), coalesce($5, behind_nat))
)
