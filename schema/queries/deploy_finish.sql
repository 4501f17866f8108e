-- deploy_finish
-- Ends the deploys of a service whose instances all run, or of which one failed
-- at this revision: a failure of an earlier one says nothing.
update deploys d
set state = outcome.state, reason = outcome.reason, finished_at = clock_timestamp()
from (
    select
        case when bool_or(p.state = 'failed' and p.running_revision = s.revision) then 'error'
             when s.instances = 0 or bool_and(p.state = 'running' and p.running_revision = s.revision) then 'success'
        end as state,
        string_agg(p.instance || ': ' || p.error, '; ' order by p.instance) filter (where p.state = 'failed' and p.running_revision = s.revision) as reason
    from services s
    left join placements p on p.service_id = s.id and p.desired = 'running'
    where s.id = $1
    group by s.id
) outcome
where d.service_id = $1 and d.state = 'ongoing' and outcome.state is not null
