-- deploy_finish
-- Ends the deploys of a service whose instances all run and are not unhealthy, or of which one failed
-- since: what was reported before a deploy, or of an earlier revision, says
-- nothing about it.
update deploys d
set state = outcome.state, reason = outcome.reason, finished_at = clock_timestamp()
from (
    select open.id,
        case
            when bool_or(failed) then 'error'
            when coalesce(bool_and(running), true)
                and (count(p.id) = s.instances or s.deployed_spec ->> 'strategy' = 'daemon') then 'success'
        end as state,
        string_agg(p.instance || ': ' || p.error, '; ' order by p.instance) filter (where failed) as reason
    from deploys open
    join services s on s.id = open.service_id
    left join placements p on p.service_id = s.id and p.desired = 'running'
    left join lateral (
        select
            p.state = 'failed' and p.running_revision = open.service_revision
                and p.updated_at > open.created_at as failed,
            p.state = 'running' and p.health <> 'unhealthy' and p.running_revision = open.service_revision as running
    ) seen on p.id is not null
    where open.service_id = $1 and open.state = 'ongoing'
    group by open.id, s.id
) outcome
where d.id = outcome.id and outcome.state is not null
