-- service_deployed
update services
set deployed_spec = spec, deployed_revision = revision, state = 'running'
where id = $1
