//! A simulated agent: it speaks the real protocol and has no host behind it.
//!
//! It joins a grid, follows the feed and remembers where endpoints are. It runs
//! nothing and reports nothing.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use kontena_schema::agent::{Facts, FromAgent, Hello, PROTOCOL, ToAgent};
use kontena_schema::ids::PlacementId;
use kontena_schema::limits::MASTER_FRAME_BYTES_MAX;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use uuid::Uuid;

use crate::bench::BenchError;

/// The longest that the Master may be silent when something is to come.
const FRAME_WITHIN: Duration = Duration::from_secs(30);

/// An agent that is connected.
pub(crate) struct Agent {
    socket: WebSocketStream<TcpStream>,
    name: String,
    /// Where the grid's endpoints are.
    pub(crate) endpoints: BTreeMap<PlacementId, Ipv4Addr>,
}

impl Agent {
    /// Joins a grid as a new host, through one replica.
    pub(crate) async fn join(
        replica: SocketAddr,
        join_token: &str,
        name: &str,
    ) -> Result<Self, BenchError> {
        let mut agent = Self::open(replica, join_token, name).await?;
        match agent.hear().await? {
            ToAgent::Welcome(_) => Ok(agent),
            ToAgent::Changes(_) => Err(agent.fail("changes came before the welcome")),
        }
    }

    /// Tries to join a grid that is to refuse it; with which close code, and why.
    pub(crate) async fn refusal(
        replica: SocketAddr,
        join_token: &str,
        name: &str,
    ) -> Result<(u16, String), BenchError> {
        let mut agent = Self::open(replica, join_token, name).await?;
        let frame = timeout(FRAME_WITHIN, agent.socket.next()).await;
        match frame.map_err(|_| agent.fail("the Master is silent"))? {
            Some(Ok(Message::Close(Some(why)))) => Ok((why.code.into(), why.reason.to_string())),
            other => Err(agent.fail(format!("it is not refused: {other:?}"))),
        }
    }

    /// Connects and says who it is.
    async fn open(replica: SocketAddr, join_token: &str, name: &str) -> Result<Self, BenchError> {
        let fail = |reason: String| BenchError::Failed(format!("agent {name}: {reason}"));
        let mut request = format!("ws://{replica}/v1/agent")
            .into_client_request()
            .map_err(|err| fail(err.to_string()))?;
        let bearer = format!("Bearer {join_token}").parse();
        let bearer = bearer.map_err(|_| fail("the token is no header".to_owned()))?;
        request.headers_mut().insert("authorization", bearer);
        let limits = WebSocketConfig::default()
            .max_message_size(Some(MASTER_FRAME_BYTES_MAX))
            .max_frame_size(Some(MASTER_FRAME_BYTES_MAX));
        let stream = TcpStream::connect(replica).await?;
        let opened = client_async_with_config(request, stream, Some(limits)).await;
        let (socket, _) = opened.map_err(|err| fail(err.to_string()))?;
        let mut agent = Self {
            socket,
            name: name.to_owned(),
            endpoints: BTreeMap::new(),
        };
        agent.say(&FromAgent::Hello(Box::new(hello(name)))).await?;
        Ok(agent)
    }

    /// Takes the next changes.
    pub(crate) async fn follow(&mut self) -> Result<(), BenchError> {
        let ToAgent::Changes(changes) = self.hear().await? else {
            return Err(self.fail("a second welcome"));
        };
        if changes.from.0 == 0 {
            self.endpoints.clear();
        }
        // What is gone first: one that moved is among both.
        for placement in changes.shared.gone_endpoints {
            self.endpoints.remove(&placement);
        }
        for endpoint in changes.shared.endpoints {
            self.endpoints.insert(endpoint.placement, endpoint.address);
        }
        Ok(())
    }

    async fn say(&mut self, message: &FromAgent) -> Result<(), BenchError> {
        let text = serde_json::to_string(message).map_err(std::io::Error::from)?;
        let said = self.socket.send(Message::text(text)).await;
        said.map_err(|err| self.fail(err))
    }

    async fn hear(&mut self) -> Result<ToAgent, BenchError> {
        loop {
            let frame = timeout(FRAME_WITHIN, self.socket.next()).await;
            match frame.map_err(|_| self.fail("the Master is silent"))? {
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(&text).map_err(|err| self.fail(err));
                }
                // Pings are answered by the library.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(other)) => return Err(self.fail(format!("{other:?}"))),
                Some(Err(err)) => return Err(self.fail(err)),
                None => return Err(self.fail("the connection ended")),
            }
        }
    }

    fn fail(&self, reason: impl std::fmt::Display) -> BenchError {
        BenchError::Failed(format!("agent {}: {reason}", self.name))
    }
}

fn hello(name: &str) -> Hello {
    Hello {
        protocol: PROTOCOL,
        engine_id: format!("{name}-{}", Uuid::new_v4()),
        boot_id: Uuid::new_v4().to_string(),
        instance: Some(Uuid::new_v4()),
        connection: 1,
        position: None,
        facts: Facts {
            hostname: name.to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            docker_version: "simulated".to_owned(),
            kernel_version: "simulated".to_owned(),
            os: "simulated".to_owned(),
            labels: Vec::new(),
            region: "default".to_owned(),
            public_ip: None,
            private_ip: None,
            behind_nat: None,
            cpus: 1,
            mem_total_bytes: 1 << 30,
            keys: None,
            networks: None,
        },
        inventory: Vec::new(),
    }
}
