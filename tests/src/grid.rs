//! A grid with its hosts, as the tests look at it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use kontena::Client;
use kontena::client::DeployWait;
use kontena_schema::agent::InstanceState;
use kontena_schema::http::containers::Container;
use kontena_schema::http::services::{Deploy, ServiceCreate};
use kontena_schema::name::service_label;

use crate::{Host, Master, Settings, until};

/// Long enough for three hosts on two processors to start their containers.
const DEPLOYED_WITHIN: Duration = Duration::from_secs(60);

/// A grid of the stack.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Its name.
    pub name: String,
    /// The administrator's client.
    pub client: Client,
    /// The Master's parts.
    pub master: Master,
    /// The stack.
    pub settings: Settings,
    /// Its hosts, by number.
    pub hosts: Vec<Host>,
}

/// Everything that restarts must leave as it is: nodes with number and address,
/// instances with node and address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    nodes: BTreeMap<String, (u8, Ipv4Addr)>,
    instances: BTreeMap<String, (Option<String>, Option<Ipv4Addr>)>,
}

impl Grid {
    /// A handle on a grid, which need not exist.
    pub(crate) fn new(settings: Settings, name: &str, hosts: &[&str]) -> Self {
        let ca = std::fs::read(&settings.ca).expect("the CA's certificate can be read");
        let client = Client::new(&settings.url, &settings.admin_token, Some(&ca))
            .expect("the Master's URL and certificate are good");
        Self {
            name: name.to_owned(),
            master: Master::new(&settings, &client),
            client,
            hosts: hosts
                .iter()
                .map(|host| Host::new(&settings.project, host))
                .collect(),
            settings,
        }
    }

    /// The host with this name.
    pub fn host(&self, name: &str) -> &Host {
        let host = self.hosts.iter().find(|host| host.name == name);
        host.unwrap_or_else(|| panic!("{name} is no host of {}", self.name))
    }

    /// The containers of the grid, or of one service.
    pub async fn containers(&self, of: Option<(Option<&str>, &str)>) -> Vec<Container> {
        let mut all = self
            .client
            .container_list(&self.name)
            .await
            .unwrap()
            .containers;
        if let Some((stack, service)) = of {
            all.retain(|container| {
                container.stack.as_deref() == stack && container.service == service
            });
        }
        all
    }

    /// The containers of a service when `count` of them run.
    pub async fn running(
        &self,
        stack: Option<&str>,
        service: &str,
        count: usize,
    ) -> Vec<Container> {
        let what = format!(
            "{count} containers of {} run",
            service_label(stack, service)
        );
        until(DEPLOYED_WITHIN, &what, async || {
            let containers = self.containers(Some((stack, service))).await;
            let all = containers
                .iter()
                .all(|container| container.state == InstanceState::Running);
            if all && containers.len() == count {
                Ok(containers)
            } else {
                Err(format!("{containers:#?}"))
            }
        })
        .await
    }

    /// Waits until a deploy has succeeded.
    pub async fn deployed(&self, deploy: &Deploy) {
        let wait = DeployWait::of(deploy).expect("a deploy names its service");
        let deploy = self
            .client
            .deploy_wait(&wait, DEPLOYED_WITHIN, |_| ())
            .await
            .unwrap();
        assert_eq!(deploy.state, "success", "{deploy:#?}");
    }

    /// Makes a service without a stack and waits until it runs.
    pub async fn service_make(&self, service: &ServiceCreate) {
        self.client
            .service_create(&self.name, service)
            .await
            .unwrap();
        let deploy = self
            .client
            .service_deploy(&self.name, None, &service.name)
            .await
            .unwrap();
        self.deployed(&deploy).await;
    }

    /// Removes a service without a stack, if it is there, and waits until
    /// nothing of it is left on the Master.
    pub async fn service_clear(&self, service: &str) {
        match self.client.service_remove(&self.name, None, service).await {
            Err(kontena::Error::Api(refusal)) if refusal.status == 404 => return,
            other => other.unwrap(),
        }
        let what = format!("the service {service} is gone");
        until(DEPLOYED_WITHIN, &what, async || {
            let list = self.client.service_list(&self.name).await.unwrap();
            let left = list.services.into_iter().find(|left| left.name == service);
            left.map_or(Ok(()), |left| Err(format!("{left:#?}")))
        })
        .await;
    }

    /// The one container of the toolbox on a host.
    pub async fn toolbox(&self, host: &Host) -> Container {
        let mut boxes = self.containers(Some((None, "toolbox"))).await;
        boxes.retain(|container| container.node.as_deref() == Some(&host.name));
        assert_eq!(boxes.len(), 1, "toolboxes on {}: {boxes:#?}", host.name);
        boxes.remove(0)
    }

    /// Runs a shell script in the toolbox of a host.
    pub async fn in_toolbox(&self, host: &Host, script: &str) -> crate::Output {
        host.inside(&self.toolbox(host).await.name, script).await
    }

    /// What restarts must leave as it is: of the example and the toolbox, which
    /// nobody but restarts touches.
    pub async fn snapshot(&self) -> Snapshot {
        let nodes = self.client.node_list(&self.name).await.unwrap().nodes;
        let containers = self.containers(None).await;
        Snapshot {
            nodes: nodes
                .into_iter()
                .map(|node| (node.name, (node.node_number, node.overlay_ip)))
                .collect(),
            instances: containers
                .into_iter()
                .filter(|c| c.stack.as_deref() == Some("testapp") || c.service == "toolbox")
                .map(|c| (c.name, (c.node, c.ip_address)))
                .collect(),
        }
    }

    /// Fetches the page of the example by its name, in the toolbox of a host, and
    /// answers the number that it shows.
    pub async fn page(&self, host: &Host, toolbox: &str) -> Result<u64, String> {
        let fetch = format!(
            "curl -fsS -m 5 http://testapp-webservice.{}.kontena.local/",
            self.name
        );
        let page = host.inside(toolbox, &fetch).await.ok()?;
        let number = page
            .split_once("Visitor number ")
            .and_then(|(_, rest)| rest.split_once(','))
            .and_then(|(number, _)| number.parse().ok());
        number.ok_or(page)
    }
}
