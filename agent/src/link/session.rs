//! One connection, from `hello` to its end.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use kontena_schema::agent::{
    Changes, FromAgent, Hello, PINGS_SINCE, PROTOCOL, ToAgent, Welcome, close,
};
use kontena_schema::ids::NodeId;
use kontena_schema::limits::{AGENT_FRAME_BYTES_MAX, DEAD_AFTER};
use tokio::time::{sleep_until, timeout, timeout_at};
use tokio_tungstenite::tungstenite::Message;
use tracing::{debug, error, info};

use super::Link;
use super::machine::{Due, End};
use super::socket::{self, Socket};
use crate::config::Secret;
use crate::facts::HostFacts;
use crate::report::{HostState, Sent};

/// How long to listen once more to a Master that seems silent: frames that have arrived are
/// there at once.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// One connection.
struct Session {
    socket: Socket,
    /// The node that the Master welcomed.
    node: Option<NodeId>,
    sent: Sent,
    facts: Arc<HostFacts>,
    /// The Master's protocol; 0 before the welcome.
    protocol: u32,
}

impl Link {
    /// Connects and keeps the connection; returns only how it ended.
    pub(super) async fn session(&mut self, token: &Secret) -> Result<Infallible, End> {
        let (facts, host) = self.known().await;
        let deadline = match self.machine.due(Instant::now()) {
            Due::Nothing(until) => until,
            Due::Ping | Due::Look | Due::Dead => return Err(End::Silent),
        };
        let socket = timeout_at(
            deadline.into(),
            socket::connect(&self.config, &self.lookup, token),
        )
        .await;
        let socket = socket.map_err(|_| End::Silent)??;
        self.connections += 1;
        let mut session = Session {
            socket,
            node: None,
            sent: Sent::default(),
            facts,
            protocol: 0,
        };
        session
            .send(&FromAgent::Hello(Box::new(
                self.hello(&session.facts, &host),
            )))
            .await?;
        loop {
            self.step(&mut session).await?;
        }
    }

    /// Facts and inventory, which `hello` needs. Both are there as soon as the Docker
    /// engine answers.
    async fn known(&mut self) -> (Arc<HostFacts>, Arc<HostState>) {
        let facts = self
            .facts
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|slot| slot.clone());
        let host = self
            .host
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|slot| slot.clone());
        match (facts, host) {
            (Some(facts), Some(host)) => (facts, host),
            // The agent is stopping: the senders are gone.
            _ => std::future::pending().await,
        }
    }

    fn hello(&self, facts: &HostFacts, host: &HostState) -> Hello {
        let position = self.directory.borrow().position();
        Hello {
            protocol: PROTOCOL,
            engine_id: facts.engine_id.clone(),
            boot_id: facts.boot_id.clone(),
            instance: Some(self.instance),
            connection: self.connections,
            position: position.filter(|_| !self.ask_everything),
            facts: facts.facts.clone(),
            inventory: host.inventory.clone(),
        }
    }

    async fn step(&mut self, session: &mut Session) -> Result<(), End> {
        let until = match self.machine.due(Instant::now()) {
            Due::Dead => return Err(End::Silent),
            Due::Look => {
                let frame = timeout(LAST_LOOK, session.socket.next()).await;
                return self.frame(session, frame.map_err(|_| End::Silent)?).await;
            }
            Due::Ping => return session.write(Message::Ping(Vec::new().into())).await,
            Due::Nothing(until) => until,
        };
        tokio::select! {
            frame = session.socket.next() => self.frame(session, frame).await?,
            () = sleep_until(until.into()) => {}
            Ok(()) = self.host.changed(), if session.node.is_some() => self.report(session).await?,
            Ok(()) = self.facts.changed(), if session.node.is_some() => self.tell(session).await?,
            Ok(()) = self.measures.changed(), if session.protocol >= MEASURES_SINCE => {
                self.tell_measures(session).await?;
            }
            Ok(()) = self.pings.changed(), if session.protocol >= PINGS_SINCE => {
                self.tell_pings(session).await?;
            }
        }
        Ok(())
    }

    async fn frame(
        &mut self,
        session: &mut Session,
        frame: Option<Result<Message, tokio_tungstenite::tungstenite::Error>>,
    ) -> Result<(), End> {
        let message = match frame {
            None => return Err(End::Failed("the connection ended".to_owned())),
            Some(Err(err)) => return Err(End::Failed(format!("the connection broke: {err}"))),
            Some(Ok(message)) => message,
        };
        self.machine.heard(Instant::now());
        match message {
            Message::Text(text) => {
                let message = serde_json::from_str(&text)
                    .map_err(|err| End::Protocol(format!("an unreadable frame: {err}")))?;
                self.message(session, message).await
            }
            Message::Close(frame) => Err(match frame {
                Some(frame) => End::Closed(frame.code.into(), frame.reason.to_string()),
                None => End::Closed(close::GOING_AWAY, String::new()),
            }),
            Message::Binary(_) => Err(End::Protocol("a binary frame".to_owned())),
            // A pong has been queued; this sends it.
            Message::Ping(_) => session.flush().await,
            Message::Pong(_) | Message::Frame(_) => Ok(()),
        }
    }

    async fn message(&mut self, session: &mut Session, message: ToAgent) -> Result<(), End> {
        match (message, session.node) {
            (ToAgent::Welcome(welcome), None) => {
                self.welcome(&welcome)?;
                session.node = Some(welcome.node);
                session.protocol = welcome.protocol;
                self.host.mark_changed();
                self.pings.mark_changed();
                self.tell(session).await
            }
            (ToAgent::Changes(changes), Some(_)) => self.changes(*changes),
            (ToAgent::Welcome(_), Some(_)) => Err(End::Protocol("a second welcome".to_owned())),
            (ToAgent::Changes(_), None) => {
                Err(End::Protocol("changes before the welcome".to_owned()))
            }
        }
    }

    fn welcome(&mut self, welcome: &Welcome) -> Result<(), End> {
        if welcome.protocol.abs_diff(PROTOCOL) > 1 {
            return Err(End::Closed(
                close::VERSION,
                format!("protocol {}", welcome.protocol),
            ));
        }
        if let Some(token) = &welcome.node_token
            && let Err(err) = self.store.save_node_token(token)
        {
            error!(%err, "cannot save the node's token; it is lost when the agent stops");
        }
        self.machine
            .welcomed(Instant::now(), welcome.node_token.is_some());
        let (node, number, grid) = (&welcome.name, welcome.number, &welcome.grid_name);
        info!(%node, %number, %grid, epoch = %welcome.epoch, "connected");
        self.directory
            .send_modify(|slot| Arc::make_mut(slot).welcome(welcome));
        Ok(())
    }

    fn changes(&mut self, changes: Changes) -> Result<(), End> {
        let (from, to) = (changes.from, changes.to);
        let mut merged = Ok(());
        self.directory.send_if_modified(|slot| {
            merged = Arc::make_mut(slot).merge(changes);
            merged.is_ok()
        });
        merged.map_err(|err| End::Protocol(err.to_string()))?;
        self.ask_everything = false;
        debug!(%from, revision = %to, "received");
        Ok(())
    }

    async fn report(&mut self, session: &mut Session) -> Result<(), End> {
        let Some(host) = self.host.borrow_and_update().clone() else {
            return Ok(());
        };
        if host.node != session.node {
            return Ok(());
        }
        match session.sent.next(&host.reported) {
            Some(report) => session.send(&FromAgent::Report(Box::new(report))).await,
            None => Ok(()),
        }
    }

    async fn tell_measures(&mut self, session: &mut Session) -> Result<(), End> {
        let Some(measures) = self.measures.borrow_and_update().clone() else {
            return Ok(());
        };
        let message = FromAgent::Measures(Box::new((*measures).clone()));
        session.send(&message).await
    }

    /// Sends all known pings: the Master leaves those that have ended as they are.
    async fn tell_pings(&mut self, session: &mut Session) -> Result<(), End> {
        let told = self.pings.borrow_and_update().clone();
        if told.node != session.node || told.reports.is_empty() {
            return Ok(());
        }
        let message = FromAgent::Pings(told.reports.clone());
        session.send(&message).await
    }

    /// Sends the facts if they differ from those last sent.
    async fn tell(&mut self, session: &mut Session) -> Result<(), End> {
        let Some(facts) = self.facts.borrow_and_update().clone() else {
            return Ok(());
        };
        if facts.facts == session.facts.facts {
            return Ok(());
        }
        session.facts = facts;
        let message = FromAgent::Facts(Box::new(session.facts.facts.clone()));
        session.send(&message).await
    }
}

/// The first protocol whose Master takes statistics.
const MEASURES_SINCE: u32 = 2;

impl Session {
    async fn send(&mut self, message: &FromAgent) -> Result<(), End> {
        let json = serde_json::to_string(message).expect("the protocol's messages are JSON");
        if json.len() > AGENT_FRAME_BYTES_MAX {
            return Err(End::Protocol(format!(
                "a message of {} bytes is too long",
                json.len()
            )));
        }
        self.write(Message::text(json)).await
    }

    /// A Master that does not read is as dead as a silent one.
    async fn write(&mut self, message: Message) -> Result<(), End> {
        match timeout(DEAD_AFTER, self.socket.send(message)).await {
            Ok(sent) => sent.map_err(|err| End::Failed(format!("the connection broke: {err}"))),
            Err(_) => Err(End::Silent),
        }
    }

    async fn flush(&mut self) -> Result<(), End> {
        match timeout(DEAD_AFTER, self.socket.flush()).await {
            Ok(sent) => sent.map_err(|err| End::Failed(format!("the connection broke: {err}"))),
            Err(_) => Err(End::Silent),
        }
    }
}
