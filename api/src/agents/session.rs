//! One agent's WebSocket, from `hello` to the end.
//!
//! The loop has three sources: frames from the agent, the grid moving on, and
//! time. Reports are taken one at a time, in the order in which they came. A
//! connection that was silent for [`DEAD_AFTER`] is dead.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use kontena_schema::agent::{FromAgent, Hello, PROTOCOL, Position, ToAgent, close};
use kontena_schema::ids::Revision;
use kontena_schema::limits::{DEAD_AFTER, HELLO_WITHIN, PING_EVERY};
use tokio::time::{Instant, Interval, timeout, timeout_at};
use uuid::Uuid;

use super::{Feed, GridWatch, Live, Wake};
use crate::app::App;
use crate::control::session::{self, SessionKey};
use crate::control::{ControlError, ping, report};
use crate::token::TokenRow;

/// Why a session ends: a close code and a sentence.
type End = (u16, String);

/// What an agent connects with.
pub struct Connection {
    /// The replica.
    pub app: Arc<App>,
    /// Cuts shared with other sessions.
    pub feed: Arc<Feed>,
    /// The bearer token.
    pub token: String,
    /// Names the session in the log.
    pub request_id: String,
}

/// Serves an agent until its connection ends.
pub async fn serve(connection: Connection, mut socket: WebSocket) {
    let (code, reason) = match greet(&connection, &mut socket).await {
        Err(end) => end,
        Ok((hello, token)) => run(&connection, &mut socket, &hello, &token).await,
    };
    tracing::info!(request_id = %connection.request_id, code, reason, "agent session ended");
    // RFC 6455 section 5.5: a control frame holds 125 bytes, two of them the code.
    let reason: String = reason.chars().filter(char::is_ascii).take(123).collect();
    let frame = CloseFrame {
        code,
        reason: reason.into(),
    };
    let closing = async {
        let _ = socket.send(Message::Close(Some(frame))).await;
        while let Some(Ok(_)) = socket.recv().await {}
    };
    let _ = timeout(Duration::from_secs(1), closing).await;
}

/// Waits for `hello` and checks who says it.
async fn greet(connection: &Connection, socket: &mut WebSocket) -> Result<(Hello, TokenRow), End> {
    let token = session::token_check(&connection.app, &connection.token)
        .await
        .map_err(refuse)?;
    let first = async {
        while let Some(Ok(message)) = socket.recv().await {
            match message {
                Message::Text(text) => return parse(&text),
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Binary(_) | Message::Close(_) => break,
            }
        }
        Err((close::BAD_FRAME, "no hello".to_owned()))
    };
    match timeout(HELLO_WITHIN, first).await {
        Ok(Ok(FromAgent::Hello(hello))) if hello.protocol.abs_diff(PROTOCOL) <= 1 => {
            Ok((*hello, token))
        }
        Ok(Ok(FromAgent::Hello(hello))) => {
            let sentence = format!(
                "protocol {} against the Master's {PROTOCOL}",
                hello.protocol
            );
            Err((close::VERSION, sentence))
        }
        Ok(Ok(_)) => Err((close::BAD_FRAME, "the first frame is not hello".to_owned())),
        Ok(Err(end)) => Err(end),
        Err(_) => Err((close::BAD_FRAME, "no hello in time".to_owned())),
    }
}

fn parse(text: &str) -> Result<FromAgent, End> {
    serde_json::from_str(text).map_err(|error| (close::BAD_FRAME, format!("bad frame: {error}")))
}

/// The close code of what stops a session.
fn refuse(error: ControlError) -> End {
    let code = match &error {
        ControlError::BadToken => close::BAD_TOKEN,
        ControlError::StaleSession => close::SUPERSEDED,
        ControlError::GridFullNodes { .. } => close::GRID_FULL_NODES,
        ControlError::NodeDuplicate { .. } => close::NODE_DUPLICATE,
        ControlError::AgentTooOld { .. } => close::VERSION,
        ControlError::NetworkOverlap(_) => close::NETWORK_OVERLAP,
        ControlError::KeyTaken => close::KEY_TAKEN,
        ControlError::NotFound { .. } => close::NODE_REMOVED,
        ControlError::Invalid(_)
        | ControlError::Conflict { .. }
        | ControlError::GridFullAddresses { .. }
        | ControlError::Busy { .. }
        | ControlError::ReplicaLost
        | ControlError::Unavailable
        | ControlError::Db(_) => close::TRY_LATER,
    };
    match error {
        ControlError::Db(error) => {
            tracing::warn!(%error, "an agent is told to try later");
            (code, "the Master cannot serve this now".to_owned())
        }
        other => (code, other.to_string()),
    }
}

/// An open session.
struct Session<'a> {
    connection: &'a Connection,
    socket: &'a mut WebSocket,
    key: SessionKey,
    timeline: String,
    at: Revision,
    /// What the grid was heard to be at when this session last looked.
    seen: Revision,
    heard_from: Instant,
    live: Live,
    /// Nothing was sent yet: the first answer says where the agent is.
    first: bool,
    /// It ends because the replica does.
    replica_ends: bool,
}

async fn run(
    connection: &Connection,
    socket: &mut WebSocket,
    hello: &Hello,
    token: &TokenRow,
) -> End {
    let app = &connection.app;
    // Joined before the session opens, so that no change is missed in between.
    let mut watch = app.hub.join(token.grid_id);
    if app.is_draining() {
        return (close::GOING_AWAY, "this replica stops".to_owned());
    }
    let (key, welcome) = match session::agent_hello(app, token, hello).await {
        Ok(opened) => opened,
        Err(error) => return refuse(error),
    };
    tracing::info!(
        request_id = %connection.request_id, grid = %key.grid, node = %key.node,
        epoch = %key.epoch, number = %welcome.number, "agent session opened"
    );
    let known = hello
        .position
        .clone()
        .filter(|position| position.grid == key.grid);
    let Position {
        timeline, revision, ..
    } = known.unwrap_or(Position {
        grid: key.grid,
        timeline: String::new(),
        revision: Revision::ZERO,
    });
    let mut session = Session {
        connection,
        socket,
        key,
        timeline,
        at: revision,
        seen: Revision::ZERO,
        heard_from: Instant::now(),
        live: app.hub.live(key.node, key.epoch),
        first: true,
        replica_ends: false,
    };
    let end = match session.send(&ToAgent::Welcome(Box::new(welcome))).await {
        Ok(()) => session.run(&mut watch).await,
        Err(end) => end,
    };
    // Whatever the Master's own trouble is, the agent is not to pay for it.
    let replica_ends = session.replica_ends || end.0 == close::TRY_LATER;
    if let Err(error) = session::session_close(app, key, replica_ends).await {
        tracing::warn!(%error, node = %key.node, "the end of a session is not written; its replica's end will be");
    }
    end
}

impl Session<'_> {
    async fn run(&mut self, watch: &mut GridWatch) -> End {
        let mut ping = tokio::time::interval(PING_EVERY);
        // Whatever the position, the first answer says where the agent is.
        if let Err(end) = self.catch_up().await {
            return end;
        }
        loop {
            match self.step(watch, &mut ping).await {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(end)) | Err(end) => return end,
            }
        }
    }

    async fn step(
        &mut self,
        watch: &mut GridWatch,
        ping: &mut Interval,
    ) -> Result<ControlFlow<End>, End> {
        tokio::select! {
            message = self.socket.recv() => match message {
                Some(Ok(message)) => self.take(message).await,
                _ => Ok(ControlFlow::Break((close::GOING_AWAY, "the agent left".to_owned()))),
            },
            wake = watch.next(self.seen) => match wake {
                Wake::Moved => self.catch_up().await.map(ControlFlow::Continue),
                Wake::Close => {
                    self.replica_ends = true;
                    // Agents of one replica do not all arrive at the next one at once.
                    let spread = u64::from(Uuid::new_v4().as_bytes()[0]) * 4;
                    tokio::time::sleep(Duration::from_millis(spread)).await;
                    Ok(ControlFlow::Break((close::GOING_AWAY, "this replica stops".to_owned())))
                }
            },
            () = self.live.doubted() => self.catch_up().await.map(ControlFlow::Continue),
            _ = ping.tick() => self.pulse().await.map(ControlFlow::Continue),
            () = tokio::time::sleep_until(self.heard_from + DEAD_AFTER) => {
                Ok(ControlFlow::Break((close::GOING_AWAY, "the agent was silent".to_owned())))
            }
        }
    }

    async fn pulse(&mut self) -> Result<(), End> {
        self.transmit(Message::Ping(Vec::new().into())).await
    }

    async fn take(&mut self, message: Message) -> Result<ControlFlow<End>, End> {
        self.heard_from = Instant::now();
        let taken = self.act_on(message).await;
        // How long that took is not the agent's silence.
        self.heard_from = Instant::now();
        taken
    }

    async fn act_on(&mut self, message: Message) -> Result<ControlFlow<End>, End> {
        let app = &self.connection.app;
        match message {
            Message::Text(text) => {
                let taken = match parse(&text)? {
                    FromAgent::Report(report) => report::agent_report(app, self.key, &report).await,
                    FromAgent::Facts(facts) => session::agent_facts(app, self.key, &facts).await,
                    FromAgent::Measures(measures) => {
                        report::agent_measures(app, self.key, &measures).await
                    }
                    FromAgent::Pings(reports) => ping::agent_pings(app, self.key, &reports).await,
                    FromAgent::Hello(_) => {
                        return Err((close::BAD_FRAME, "a second hello".to_owned()));
                    }
                };
                match taken {
                    Ok(()) => {}
                    Err(ControlError::StaleSession) => return Err(superseded(app, self.key).await),
                    Err(error) => return Err(refuse(error)),
                }
            }
            Message::Binary(_) => return Err((close::BAD_FRAME, "a binary frame".to_owned())),
            Message::Close(_) => {
                return Ok(ControlFlow::Break((
                    close::GOING_AWAY,
                    "the agent left".to_owned(),
                )));
            }
            Message::Ping(_) | Message::Pong(_) => {}
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Sends what the agent does not know yet.
    async fn catch_up(&mut self) -> Result<(), End> {
        let app = &self.connection.app;
        // A node that was removed, or a newer connection, ends this session.
        let current = session::is_current(app, self.key).await.map_err(refuse)?;
        if !current {
            return Err(superseded(app, self.key).await);
        }
        self.seen = app.hub.heard(self.key.grid);
        let feed = &self.connection.feed;
        let cut = feed
            .cut(&app.db, self.key.grid, &self.timeline, self.at, self.seen)
            .await
            .map_err(|error| refuse(error.into()))?
            .ok_or_else(|| (close::NODE_REMOVED, "the grid is no more".to_owned()))?;
        if cut.from() == self.at && cut.to() == self.at && self.at > Revision::ZERO && !self.first {
            return Ok(());
        }
        self.first = false;
        self.transmit(Message::Text(cut.frame(self.key.node).into()))
            .await?;
        cut.timeline().clone_into(&mut self.timeline);
        self.at = cut.to();
        tracing::debug!(node = %self.key.node, revision = %self.at, "sent changes");
        Ok(())
    }

    async fn send(&mut self, message: &ToAgent) -> Result<(), End> {
        let text = serde_json::to_string(message).expect("messages are plain JSON types");
        self.transmit(Message::Text(text.into())).await
    }

    async fn transmit(&mut self, message: Message) -> Result<(), End> {
        // Nobody hears the agent meanwhile, and it may be silent already.
        match timeout_at(self.heard_from + DEAD_AFTER, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err((close::GOING_AWAY, format!("the agent left: {error}"))),
            Err(_) => Err((close::GOING_AWAY, "the agent does not read".to_owned())),
        }
    }
}

/// Why a session is not its node's latest any more.
async fn superseded(app: &App, key: SessionKey) -> End {
    match session::latest(app, key).await {
        Ok(None) => (close::NODE_REMOVED, "the node was removed".to_owned()),
        Ok(Some(epoch)) if epoch > key.epoch => {
            (close::SUPERSEDED, "a newer connection took over".to_owned())
        }
        Ok(Some(_)) => (
            close::TRY_LATER,
            "the session was ended, connect again".to_owned(),
        ),
        Err(error) => refuse(error),
    }
}
