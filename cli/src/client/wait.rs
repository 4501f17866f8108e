//! Waiting for what takes its time: a deploy, a ping, and the end of what was removed.

use std::time::Duration;

use kontena_schema::http::pings::Ping;
use kontena_schema::http::services::Deploy;
use tokio::time::Instant;

use super::{Client, Error};

/// How often it is looked at: fast enough that a person sees each step.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// The Master ends a ping within 40 s, whatever its node does.
const PING_WITHIN: Duration = Duration::from_secs(60);

/// A deploy to wait for.
#[derive(Clone, Debug)]
pub struct DeployWait {
    /// The grid.
    pub grid: String,
    /// The service's stack.
    pub stack: Option<String>,
    /// The service.
    pub service: String,
    /// The deploy.
    pub id: i64,
}

impl DeployWait {
    /// What to wait for, from the deploy as its beginning was answered.
    pub fn of(deploy: &Deploy) -> Option<Self> {
        let mut parts = deploy.service_id.split('/');
        let (grid, stack, service) = (parts.next()?, parts.next()?, parts.next()?);
        parts.next().is_none().then(|| Self {
            grid: grid.to_owned(),
            stack: (stack != "null").then(|| stack.to_owned()),
            service: service.to_owned(),
            id: deploy.id,
        })
    }

    /// `stack/service`, or `service` for one without a stack.
    pub fn label(&self) -> String {
        match &self.stack {
            Some(stack) => format!("{stack}/{}", self.service),
            None => self.service.clone(),
        }
    }
}

impl Client {
    /// Waits until a deploy has ended, well or not, and answers it; `seen` is
    /// shown each state of it on the way.
    ///
    /// # Errors
    /// [`Error::DeployLate`] at the deadline, else those of every call.
    pub async fn deploy_wait(
        &self,
        wait: &DeployWait,
        within: Duration,
        mut seen: impl FnMut(&Deploy),
    ) -> Result<Deploy, Error> {
        let end = Instant::now() + within;
        loop {
            let stack = wait.stack.as_deref();
            let deploy = self
                .deploy_show(&wait.grid, stack, &wait.service, wait.id)
                .await?;
            seen(&deploy);
            if deploy.finished_at.is_some() {
                return Ok(deploy);
            }
            if Instant::now() >= end {
                let (service, seconds) = (wait.label(), within.as_secs());
                return Err(Error::DeployLate {
                    service,
                    seconds,
                    last: summary(&deploy),
                });
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

impl Client {
    /// Waits until a ping has ended, well or not, and answers it.
    ///
    /// # Errors
    /// [`Error::PingLate`] after a minute, else those of every call.
    pub async fn node_ping_wait(&self, grid: &str, begun: Ping) -> Result<Ping, Error> {
        let end = Instant::now() + PING_WITHIN;
        let mut ping = begun;
        while ping.finished_at.is_none() {
            if Instant::now() >= end {
                let Ping {
                    from, to, state, ..
                } = ping;
                return Err(Error::PingLate { from, to, state });
            }
            tokio::time::sleep(ASK_EVERY).await;
            ping = self.node_ping_show(grid, &ping.from, ping.id).await?;
        }
        Ok(ping)
    }
}

/// Waits until `show` finds nothing any more: what was removed ends with its last
/// container.
///
/// # Errors
/// [`Error::RemovalLate`] at the deadline, else those of `show`.
pub async fn wait_gone<T>(
    what: &str,
    within: Duration,
    show: impl AsyncFn() -> Result<T, Error>,
) -> Result<(), Error> {
    let end = Instant::now() + within;
    loop {
        match show().await {
            Err(err) if err.is_not_found() => return Ok(()),
            Err(err) => return Err(err),
            Ok(_) if Instant::now() >= end => {
                let (what, seconds) = (what.to_owned(), within.as_secs());
                return Err(Error::RemovalLate { what, seconds });
            }
            Ok(_) => tokio::time::sleep(ASK_EVERY).await,
        }
    }
}

fn summary(deploy: &Deploy) -> String {
    let mut text = deploy.state.clone();
    for instance in &deploy.instance_deploys {
        let node = instance.node.as_deref().unwrap_or("no node");
        text += &format!(
            "; {} on {node}: {}",
            instance.instance_number, instance.state
        );
        if let Some(error) = &instance.error {
            text += &format!(" ({error})");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deploy(service_id: &str) -> Deploy {
        Deploy {
            id: 7,
            service_id: service_id.to_owned(),
            state: "ongoing".to_owned(),
            reason: None,
            created_at: String::new(),
            finished_at: None,
            instance_deploys: Vec::new(),
        }
    }

    #[test]
    fn a_deploy_names_its_service() {
        let label = |id: &str| DeployWait::of(&deploy(id)).map(|wait| wait.label());
        assert_eq!(label("demo/testapp/db").as_deref(), Some("testapp/db"));
        assert_eq!(label("demo/null/web").as_deref(), Some("web"));
        assert_eq!(label("demo/web"), None);
        assert_eq!(label("a/b/c/d"), None);
    }
}
