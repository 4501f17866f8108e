//! The host's resolvers: which they are, and which of them answer.
//!
//! On a lookup, the host's `/etc/resolv.conf` is reread if the last read is a second old, on
//! a blocking thread, as a disk may hang. A file that names none, such as one that is just
//! being written, changes nothing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kontena_task::TaskSet;
use nix::ifaddrs::getifaddrs;
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{info, warn};

use super::answer::Transport;
use super::exchange::ask;
use super::health::{Health, Standing};
use super::host_file;
use super::resolv_conf::ResolvConf;

/// How old the list of resolvers may be.
const READ_EVERY: Duration = Duration::from_secs(1);
/// A slower disk counts as hung.
const READ_WITHIN: Duration = Duration::from_secs(1);
/// How long a hung disk is left alone; each try may cost a thread.
const READ_AGAIN: Duration = Duration::from_secs(60);
/// A resolver that is slower is as good as dead.
const PROBE_WITHIN: Duration = Duration::from_secs(2);
const PORT: u16 = 53;
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The host's root, seen through its first process.
const HOST_ROOT: &str = "/proc/1/root";

/// A root that may have an `/etc/resolv.conf`.
#[derive(Clone, Debug)]
pub struct Root {
    /// Where it is.
    pub path: PathBuf,
    /// Whether its loopback is ours.
    pub loopback: bool,
}

impl Root {
    /// The host's own root, and that of the agent's container, whose file was copied when the
    /// container was created.
    pub fn of_host() -> Vec<Self> {
        // A stub at 127.0.0.53 is the host's and answers only in the host's namespace.
        let namespace = |process| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
        let shared = namespace("1").is_some() && namespace("1") == namespace("self");
        let root = |path: &str, loopback| Self {
            path: PathBuf::from(path),
            loopback,
        };
        vec![root(HOST_ROOT, shared), root("/", true)]
    }
}

/// A resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolver {
    /// Its address.
    pub address: SocketAddr,
    /// Whether it runs on this host.
    pub local: bool,
}

/// The host's resolvers.
pub struct Upstreams {
    roots: Vec<Root>,
    port: u16,
    state: Mutex<State>,
    /// Held while reading the files.
    reading: AsyncMutex<()>,
}

struct State {
    /// When to read the files again; none before the first read.
    read_again: Option<Instant>,
    /// The files as last read, in the order of the roots.
    files: Vec<ResolvConf>,
    /// The resolvers in each of them.
    resolvers: Vec<Vec<Resolver>>,
    /// A resolver that answers over UDP may be dead over TCP.
    health: HashMap<(SocketAddr, Transport), Health>,
    probes: TaskSet<()>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            read_again: None,
            files: Vec::new(),
            resolvers: Vec::new(),
            health: HashMap::new(),
            probes: TaskSet::new("resolver probes"),
        }
    }
}

/// The resolvers to ask for one query.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Turns {
    /// In turn.
    pub first: VecDeque<SocketAddr>,
    /// After that, if none has answered.
    pub last: VecDeque<SocketAddr>,
    /// Alongside, to see whether they are still dead.
    pub probed: Vec<SocketAddr>,
}

impl Upstreams {
    /// The resolvers of the first of these roots that names any.
    pub fn new(roots: Vec<Root>) -> Self {
        Self {
            roots,
            port: PORT,
            state: Mutex::default(),
            reading: AsyncMutex::default(),
        }
    }

    /// For tests: the resolvers listen on another port.
    #[cfg(test)]
    pub fn with_port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// The text of a file below each of the roots.
    pub async fn texts(&self, path: &'static str) -> Vec<String> {
        let roots = self.roots.clone();
        let read = move |root: &Root| host_file::read(&root.path, path).unwrap_or_default();
        aside(move || roots.iter().map(read).collect())
            .await
            .unwrap_or_default()
    }

    /// The search domains and `ndots`.
    pub async fn search(&self) -> (Vec<String>, usize) {
        self.read().await;
        let state = self.state();
        let named = |conf: &&ResolvConf| !conf.nameservers.is_empty();
        let conf = state.files.iter().find(named).cloned().unwrap_or_default();
        (conf.search, conf.ndots)
    }

    /// Which of the permitted resolvers to ask.
    pub async fn turns(&self, over: Transport, may: impl Fn(&Resolver) -> bool) -> Turns {
        self.read().await;
        let now = Instant::now();
        let mut state = self.state();
        let lists = state.resolvers.iter();
        let mut lists = lists.map(|list| list.iter().filter(|r| may(r)).collect::<Vec<_>>());
        let list = lists.find(|list| !list.is_empty()).unwrap_or_default();
        let addresses: Vec<SocketAddr> = list.iter().map(|resolver| resolver.address).collect();
        let mut turns = Turns::default();
        for address in addresses {
            let health = state.health.entry((address, over)).or_default();
            match health.standing(now) {
                Standing::Alive => turns.first.push_back(address),
                Standing::Skipped => turns.last.push_back(address),
                Standing::Due => {
                    health.retried(now);
                    turns.probed.push(address);
                }
            }
        }
        if turns.first.is_empty() {
            turns.first = std::mem::take(&mut turns.probed).into();
        }
        turns
    }

    /// Sends a client's query to a dead resolver, while another one answers the client.
    pub fn probe(self: &Arc<Self>, resolver: SocketAddr, query: &[u8], over: Transport) {
        let (upstreams, query) = (self.clone(), query.to_vec());
        let probe = async move {
            let asked = Instant::now();
            match timeout(PROBE_WITHIN, ask(resolver, &query, over)).await {
                Ok(Ok(_)) => upstreams.answered(resolver, over),
                _ => upstreams.failed(resolver, over, asked),
            }
        };
        let mut state = self.state();
        // At most one for each resolver: one being probed is not due.
        while state.probes.try_next().is_some() {}
        state.probes.spawn(probe);
    }

    /// A resolver answered.
    pub fn answered(&self, resolver: SocketAddr, over: Transport) {
        if let Some(health) = self.state().health.get_mut(&(resolver, over))
            && health.answered(Instant::now())
        {
            info!(%resolver, ?over, "the resolver answers again");
        }
    }

    /// A resolver did not answer a query sent at `asked`.
    pub fn failed(&self, resolver: SocketAddr, over: Transport, asked: Instant) {
        if let Some(health) = self.state().health.get_mut(&(resolver, over))
            && health.failed(asked, Instant::now())
        {
            info!(%resolver, ?over, "the resolver does not answer; skipping it for a while");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the files if due. While another task does, only the first read is waited for.
    async fn read(&self) {
        let again = self.state().read_again;
        if again.is_some_and(|again| again > Instant::now()) {
            return;
        }
        let _reading = match self.reading.try_lock() {
            Ok(reading) => reading,
            Err(_) if again.is_some() => return,
            Err(_) => self.reading.lock().await,
        };
        if self.state().read_again != again {
            return;
        }
        let roots = self.roots.clone();
        let files = aside(move || roots.iter().map(Root::resolv_conf).collect()).await;
        let pause = if files.is_some() {
            READ_EVERY
        } else {
            READ_AGAIN
        };
        let mut state = self.state();
        state.read_again = Some(Instant::now() + pause);
        if let Some(files) = files {
            state.take(files, self.port);
        }
    }
}

/// Runs blocking work; none if it does not end soon.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    timeout(READ_WITHIN, spawn_blocking(work)).await.ok()?.ok()
}

impl Root {
    fn resolv_conf(&self) -> ResolvConf {
        let text = host_file::read(&self.path, RESOLV_CONF).unwrap_or_default();
        let mut conf = ResolvConf::parse(&text);
        conf.nameservers
            .retain(|ip| self.loopback || !ip.is_loopback());
        conf
    }
}

impl State {
    fn take(&mut self, files: Vec<ResolvConf>, port: u16) {
        let named = |files: &[ResolvConf]| files.iter().any(|conf| !conf.nameservers.is_empty());
        if !named(&files) {
            if self.files.is_empty() {
                warn!("{RESOLV_CONF} names no resolver; external names are not resolved");
                self.files = files;
            }
            return;
        }
        if files == self.files {
            return;
        }
        let here = own_addresses();
        let resolver = |ip: &IpAddr| Resolver {
            address: SocketAddr::new(*ip, port),
            local: ip.is_loopback() || ip.is_unspecified() || here.contains(ip),
        };
        let of = |conf: &ResolvConf| conf.nameservers.iter().map(resolver).collect();
        self.resolvers = files.iter().map(of).collect();
        let listed: HashSet<SocketAddr> =
            self.resolvers.iter().flatten().map(|r| r.address).collect();
        self.health
            .retain(|(address, _), _| listed.contains(address));
        info!(resolvers = ?self.resolvers.iter().find(|list| !list.is_empty()), "the host's resolvers");
        self.files = files;
    }
}

fn own_addresses() -> HashSet<IpAddr> {
    let Ok(addresses) = getifaddrs() else {
        return HashSet::new();
    };
    let ip = |found: nix::ifaddrs::InterfaceAddress| {
        let address = found.address?;
        let v4 = address.as_sockaddr_in().map(|at| IpAddr::V4(at.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|at| IpAddr::V6(at.ip())))
    };
    addresses.filter_map(ip).collect()
}

#[cfg(test)]
#[path = "upstream_tests.rs"]
mod tests;
