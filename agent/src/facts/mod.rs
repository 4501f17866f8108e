//! Facts about the host: the engine, kernel, region, addresses and networks (DESIGN
//! section 7).
//!
//! Facts are read again every minute and published when they differ. The public
//! address may have to be looked up on the Internet; nothing waits for it, and a
//! failed lookup leaves the last known one.

pub mod kernel;
pub mod master;
pub mod networks;
pub mod overlap;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use bollard::models::SystemInfo;
use kontena_schema::agent::Facts;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info, warn};
use url::Url;

use crate::config::Config;
use crate::dns::lookup::Lookup;
use crate::docker::words;
use crate::keys::HostKeys;
use crate::net;

/// How often facts are read; a changed address is reported this late.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How soon a failed read is retried.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// How often the public address is looked up once known.
const RESOLVE_EVERY: Duration = Duration::from_secs(600);
/// How often it is looked up until it is known.
const RESOLVE_RETRY_EVERY: Duration = Duration::from_secs(60);
/// A slower resolver counts as unreachable.
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);
/// The region of an engine without a `region=` label.
const DEFAULT_REGION: &str = "default";

/// Facts, and what else `hello` has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// The id of the Docker engine.
    pub engine_id: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// The facts.
    pub facts: Facts,
}

/// Where the engine's facts about its host come from.
#[derive(Clone)]
pub enum Source {
    /// The engine.
    Engine(Docker),
    /// The kernel, where there is no engine.
    Kernel {
        /// Identifies this host.
        id: String,
    },
}

impl Source {
    async fn info(&self) -> Result<SystemInfo, String> {
        match self {
            Self::Engine(docker) => docker.info().await.map_err(|err| words(&err)),
            Self::Kernel { id } => Ok(kernel::info(id)),
        }
    }
}

/// The latest facts; none before the first successful read.
pub type FactsSlot = watch::Receiver<Option<Arc<HostFacts>>>;

/// Publishes the facts whenever they change, for ever.
pub async fn watch(
    source: Source,
    config: Arc<Config>,
    mut public_ip: watch::Receiver<Option<Ipv4Addr>>,
    mut keys: watch::Receiver<Arc<HostKeys>>,
    slot: watch::Sender<Option<Arc<HostFacts>>>,
) {
    loop {
        let public = *public_ip.borrow_and_update();
        let told = keys.borrow_and_update().told;
        let pause = match look(&source, &config, public).await {
            Ok(mut facts) => {
                facts.facts.keys = Some(told);
                publish(&slot, facts);
                LOOK_EVERY
            }
            Err(reason) => {
                debug!(reason, "cannot read the facts");
                RETRY_EVERY
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            Ok(()) = public_ip.changed() => {}
            Ok(()) = keys.changed() => {}
        }
    }
}

fn publish(slot: &watch::Sender<Option<Arc<HostFacts>>>, facts: HostFacts) {
    let changed = slot.send_if_modified(|old| {
        let differs = old.as_deref() != Some(&facts);
        if differs {
            *old = Some(Arc::new(facts));
        }
        differs
    });
    if changed && let Some(host) = slot.borrow().as_deref() {
        let Facts {
            region,
            public_ip,
            private_ip,
            ..
        } = &host.facts;
        info!(
            engine = host.engine_id,
            region,
            ?public_ip,
            ?private_ip,
            "collected the host's facts"
        );
    }
}

async fn look(
    source: &Source,
    config: &Config,
    public_ip: Option<Ipv4Addr>,
) -> Result<HostFacts, String> {
    let engine = source.info().await?;
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let networks = networks::look().await;
    if let Err(reason) = &networks {
        debug!(reason, "cannot read the host's networks");
    }
    Ok(HostFacts {
        engine_id: engine.id.clone().ok_or("the Docker engine has no id")?,
        boot_id: boot_id.trim().to_owned(),
        facts: Facts {
            networks: networks.ok(),
            ..facts(engine, public_ip, private_ip(config))
        },
    })
}

fn facts(engine: SystemInfo, public_ip: Option<Ipv4Addr>, private_ip: Option<Ipv4Addr>) -> Facts {
    let labels = engine.labels.unwrap_or_default();
    Facts {
        hostname: engine.name.unwrap_or_default(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        docker_version: engine.server_version.unwrap_or_default(),
        kernel_version: engine.kernel_version.unwrap_or_default(),
        os: engine.operating_system.unwrap_or_default(),
        region: region(&labels),
        labels,
        public_ip,
        private_ip,
        behind_nat: public_ip.and_then(net::is_elsewhere),
        cpus: engine
            .ncpu
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or_default(),
        mem_total_bytes: engine
            .mem_total
            .and_then(|n| u64::try_from(n).ok())
            .unwrap_or_default(),
        keys: None,
        networks: None,
    }
}

/// The value of the first `region=` label.
fn region(labels: &[String]) -> String {
    let region = labels
        .iter()
        .find_map(|label| label.strip_prefix("region="));
    region
        .filter(|region| !region.is_empty())
        .unwrap_or(DEFAULT_REGION)
        .to_owned()
}

/// As configured, else that of the peer interface, of `eth0`, or of the default
/// route's interface.
fn private_ip(config: &Config) -> Option<Ipv4Addr> {
    config
        .private_ip
        .or_else(|| net::interface_address(&config.peer_interface))
        .or_else(|| net::interface_address("eth0"))
        .or_else(|| net::interface_address(&net::default_interface()?))
}

/// Publishes the public address whenever an answer differs, for ever.
pub async fn watch_public_ip(
    config: Arc<Config>,
    lookup: Lookup,
    slot: watch::Sender<Option<Ipv4Addr>>,
) {
    if let Some(given) = config.public_ip {
        slot.send_replace(Some(given));
        return std::future::pending().await;
    }
    let mut told = false;
    loop {
        match resolve(&config.public_ip_resolver, &lookup).await {
            Ok(address) => {
                told = false;
                slot.send_if_modified(|old| old.replace(address) != Some(address));
            }
            Err(reason) if !told => {
                warn!(
                    reason,
                    "the public address is not known; set KONTENA_PUBLIC_IP"
                );
                told = true;
            }
            Err(_) => {}
        }
        let known = slot.borrow().is_some();
        sleep(if known && !told {
            RESOLVE_EVERY
        } else {
            RESOLVE_RETRY_EVERY
        })
        .await;
    }
}

async fn resolve(url: &Url, lookup: &Lookup) -> Result<Ipv4Addr, String> {
    let fail = |err: reqwest::Error| format!("{url}: {}", err.without_url());
    let mut client = reqwest::Client::builder()
        .dns_resolver(lookup.clone())
        .timeout(RESOLVE_WITHIN);
    if url.scheme() == "http" {
        // A host without CA certificates can ask all the same.
        client = client.tls_certs_only([]);
    }
    let answer = client
        .build()
        .map_err(fail)?
        .get(url.clone())
        .send()
        .await
        .map_err(fail)?;
    let text = answer
        .error_for_status()
        .map_err(fail)?
        .text()
        .await
        .map_err(fail)?;
    text.trim()
        .parse()
        .map_err(|_| format!("{url}: the answer is not an IPv4 address"))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use kontena_task::Tasks;

    #[test]
    fn the_first_region_label_is_the_region() {
        let labels = |list: &[&str]| list.iter().map(|&l| l.to_owned()).collect::<Vec<_>>();
        assert_eq!(region(&labels(&["az=a", "region=fi", "region=us"])), "fi");
        assert_eq!(region(&labels(&["az=a"])), "default");
        assert_eq!(region(&labels(&["region="])), "default");
    }

    /// Answers every request with `body`.
    async fn resolver(body: &'static str) -> (Url, Tasks) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let mut tasks = Tasks::new();
        tasks.spawn("resolver", async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await.unwrap();
                let length = body.len();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                stream
                    .write_all(format!("{head}{body}").as_bytes())
                    .await
                    .unwrap();
            }
        });
        (url, tasks)
    }

    #[tokio::test]
    async fn the_public_address_is_what_the_resolver_says() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (url, _tasks) = resolver("192.0.2.7\n").await;
        let lookup = Lookup::of_host();
        assert_eq!(resolve(&url, &lookup).await, Ok([192, 0, 2, 7].into()));
        let (url, _tasks) = resolver("<html>").await;
        assert!(
            resolve(&url, &lookup)
                .await
                .unwrap_err()
                .contains("not an IPv4 address")
        );
    }
}
