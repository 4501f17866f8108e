//! The Master as the hosts see it, and grids on it.
//!
//! Hosts reach it at an address on their switch. Behind it connections are passed on
//! to the replicas in turn, byte by byte: a machine may let nobody from another
//! network namespace into its own, so the side that listens is on the switch, and the
//! side that connects is here. What goes by is counted.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kontena_lab::large_topology;
use kontena_schema::agent::{PeerReport, close};
use kontena_schema::http::grids::{Grid as GridBody, GridCreate};
use kontena_schema::http::nodes::{Node, Nodes};
use kontena_schema::path::Path;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::Trust;
use super::frames::Frames;
use super::hosts::Hosts;
use crate::agent::Agent;
use crate::bench::BenchError;
use crate::client::{ClientError, Connection, Target};

/// How often a replica is asked again for what agents report.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long one is asked again that cannot answer at the moment. While 254 agents turn
/// their pairs clear, the containers of the Master together get no more of the processors
/// than one agent does, and a replica gives a request up after 20 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(180);

/// Bytes that are passed on at once.
const PIECE: usize = 16 << 10;

/// Messages that went by.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    pub(crate) to_agents: AtomicU64,
    pub(crate) from_agents: AtomicU64,
}

/// The replicas, and the netns where hosts reach them.
pub(crate) struct Master {
    replicas: Vec<Target>,
    /// What agents connect to.
    pub(crate) uri: String,
    pub(crate) messages: Arc<Messages>,
    relay: AbortHandle,
}

impl Master {
    /// Lets hosts reach the replicas; must be called inside a runtime.
    pub(crate) fn open(replicas: Vec<Target>, hosts: &Hosts) -> Result<Self, BenchError> {
        let (netns, address) = &hosts.master;
        let listener = netns.inside(|| StdListener::bind((*address, 0)))?;
        listener.set_nonblocking(true)?;
        let uri = format!("ws://{}", listener.local_addr()?);
        let messages = Arc::new(Messages::default());
        let to = replicas.iter().map(|target| target.address).collect();
        let relay = relay(TcpListener::from_std(listener)?, to, Arc::clone(&messages));
        Ok(Self {
            replicas,
            uri,
            messages,
            relay: tokio::spawn(relay).abort_handle(),
        })
    }

    /// Makes a grid.
    pub(crate) async fn grid(&self, trust: Trust) -> Result<Grid, BenchError> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let since = since.unwrap_or_default().as_secs();
        let subnets = match trust {
            Trust::Sealed => Vec::new(),
            Trust::Fast => vec![large_topology::SUBNET.to_owned()],
        };
        let create = GridCreate {
            name: format!("mesh-{}-{since}", trust.word()),
            trusted_subnets: Some(subnets),
            ..GridCreate::default()
        };
        let mut control = Connection::open(&self.replicas[0]).await?;
        let grid: GridBody = control.call("POST", "/v1/grids", Some(&create)).await?;
        Ok(Grid {
            control,
            name: grid.name,
            token: grid.token.unwrap_or_default(),
        })
    }

    /// Whether a node more is refused with exactly the error for that.
    pub(crate) async fn refuses_one_more(&self, grid: &Grid) -> Result<(), BenchError> {
        let replica = self.replicas[0].address;
        let (code, why) = Agent::refusal(replica, &grid.token, "one-more").await?;
        println!("one node more: {code} {why}");
        if code == close::GRID_FULL_NODES {
            return Ok(());
        }
        let what = format!("WRONG: one node more is refused with {code} {why}");
        Err(BenchError::Failed(what))
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

/// A grid of the run.
pub(crate) struct Grid {
    control: Connection,
    pub(crate) name: String,
    pub(crate) token: String,
}

impl Grid {
    /// What the Master says. On a machine that the agents fill, a replica may have to say
    /// for a while that it cannot answer.
    async fn get<A: DeserializeOwned>(&mut self, path: &str) -> Result<A, ClientError> {
        let until = Instant::now() + ANSWER_WITHIN;
        loop {
            match self.control.call("GET", path, None::<&()>).await {
                Err(ClientError::Refused { status: 503, .. }) if Instant::now() < until => {
                    sleep(LOOK_EVERY).await;
                }
                answer => return answer,
            }
        }
    }

    /// The grid's nodes.
    async fn nodes(&mut self) -> Result<Nodes, BenchError> {
        let path = format!("/v1/grids/{}/nodes", self.name);
        Ok(self.get(&path).await?)
    }

    /// How many nodes it has; fails unless their numbers are 1 to that.
    pub(crate) async fn count(&mut self) -> Result<usize, BenchError> {
        let nodes = self.nodes().await?.nodes;
        let numbers: BTreeSet<usize> = nodes.iter().map(|node| node.node_number.into()).collect();
        if numbers.len() == nodes.len() && numbers.iter().copied().eq(1..=nodes.len()) {
            return Ok(nodes.len());
        }
        let what = format!("WRONG: {} nodes have the numbers {numbers:?}", nodes.len());
        Err(BenchError::Failed(what))
    }

    /// Waits until all nodes have reported clear paths to all others; the seconds since.
    /// They are asked one after the other: all at once would be an answer of 10 MB.
    pub(crate) async fn clear(
        &mut self,
        begun: Instant,
        within: Duration,
    ) -> Result<f64, BenchError> {
        let nodes = self.nodes().await?.nodes;
        for node in &nodes {
            let path = format!("/v1/nodes/{}", node.id);
            loop {
                let node: Node = self.get(&path).await?;
                let is_clear = |peer: &&PeerReport| matches!(peer.path, Path::Fast { .. });
                let clear = node.peers.iter().filter(is_clear).count();
                if clear + 1 == nodes.len() {
                    break;
                }
                if begun.elapsed() > within {
                    let what = format!("{} has only {clear} clear paths", node.id);
                    return Err(BenchError::Failed(what));
                }
                sleep(LOOK_EVERY).await;
            }
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Removes the grid with its nodes.
    pub(crate) async fn remove(mut self) -> Result<(), BenchError> {
        for node in self.nodes().await?.nodes {
            let path = format!("/v1/nodes/{}", node.id);
            let _: serde_json::Value = self.control.call("DELETE", &path, None::<&()>).await?;
        }
        let path = format!("/v1/grids/{}", self.name);
        let _: serde_json::Value = self.control.call("DELETE", &path, None::<&()>).await?;
        Ok(())
    }
}

/// Passes connections on, for ever.
async fn relay(listener: TcpListener, to: Vec<SocketAddr>, messages: Arc<Messages>) {
    let mut connections = JoinSet::new();
    for replica in to.iter().cycle() {
        match listener.accept().await {
            Ok((host, _)) => {
                connections.spawn(pass_on(host, *replica, Arc::clone(&messages)));
            }
            Err(err) => eprintln!("the Master's side of the switch: {err}"),
        }
        while connections.try_join_next().is_some() {}
    }
}

/// One connection; its end, for whatever reason, is seen at both ends.
async fn pass_on(mut host: TcpStream, replica: SocketAddr, messages: Arc<Messages>) {
    let Ok(mut replica) = TcpStream::connect(replica).await else {
        return;
    };
    let _ = (host.set_nodelay(true), replica.set_nodelay(true));
    let (from_host, to_host) = host.split();
    let (from_replica, to_replica) = replica.split();
    tokio::select! {
        _ = pump(from_host, to_replica, &messages.from_agents) => {}
        _ = pump(from_replica, to_host, &messages.to_agents) => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    messages: &AtomicU64,
) -> std::io::Result<()> {
    let mut frames = Frames::default();
    let mut piece = vec![0; PIECE];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return Ok(());
        }
        let before = frames.messages;
        frames.take(&piece[..length]);
        messages.fetch_add(frames.messages - before, Ordering::Relaxed);
        to.write_all(&piece[..length]).await?;
    }
}
