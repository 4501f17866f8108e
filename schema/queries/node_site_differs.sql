-- node_site_differs
select exists (
    select from nodes
    where id = $1
        and (region, public_ip, private_ip) is distinct from
            ($2, coalesce($3::text::inet, public_ip), coalesce($4::text::inet, private_ip))
)
