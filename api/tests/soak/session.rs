//! An agent's sessions: it speaks the real protocol over one connection, and finds
//! another replica by itself when it loses one.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use kontena_schema::agent::{
    Facts, FromAgent, Hello, InventoryEntry, PROTOCOL, PlacementReport, Position, Report, ToAgent,
    close,
};
use kontena_schema::ids::Revision;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use uuid::Uuid;

use crate::agents::{Command, Leave, Shared, WITHIN};
use crate::world::World;

/// How often an agent asks whether its replica is there, and how long it waits for
/// any sign of it. Sooner than the real one's, which has hours for what takes minutes here.
const PING_EVERY: Duration = Duration::from_millis(500);
const DEAD_AFTER: Duration = Duration::from_millis(2500);
/// How long a replica may take to open a connection, and to answer `hello`: a
/// grid's lock may be held by a frozen replica for a second.
const OPEN_WITHIN: Duration = Duration::from_millis(800);
const WELCOME_WITHIN: Duration = Duration::from_millis(2500);
/// The longest that a `hello` may lie somewhere before it is taken.
const DOUBT_MS: u64 = 10_000;
type Socket = WebSocketStream<TcpStream>;

/// Why there is no session.
enum End {
    /// Another try may succeed.
    Again,
    /// The Master said no.
    Refused(u16),
}

/// What keeps an agent's session.
pub struct Runner {
    world: Arc<World>,
    shared: Arc<Shared>,
    engine: String,
    token: String,
    instance: Uuid,
    /// Counts that run's connections.
    connections: u32,
    /// The replica that was no good last time.
    bad: Option<usize>,
}

impl Runner {
    pub fn new(world: &Arc<World>, shared: &Arc<Shared>, engine: String, token: String) -> Self {
        Self {
            world: Arc::clone(world),
            shared: Arc::clone(shared),
            engine,
            token,
            instance: Uuid::new_v4(),
            connections: 0,
            bad: None,
        }
    }

    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut socket: Option<Socket> = None;
        loop {
            let Some(open) = &mut socket else {
                match commands.recv().await {
                    None => return,
                    Some(Command::Connect(inventory)) => socket = self.open(inventory).await,
                    Some(
                        Command::Leave(..) | Command::Send(_) | Command::Move(_) | Command::Restart,
                    ) => {}
                }
                continue;
            };
            tokio::select! {
                command = commands.recv() => match command {
                    None => return,
                    Some(command) => socket = self.obey(command, socket.take()).await,
                },
                end = listen(open, &self.shared) => {
                    self.shared.update(|view| view.online = false);
                    socket = match end {
                        End::Again | End::Refused(close::NODE_DUPLICATE) => self.reopen().await,
                        End::Refused(code) => self.refused(code),
                    };
                }
            }
        }
    }

    async fn obey(&mut self, command: Command, socket: Option<Socket>) -> Option<Socket> {
        let mut socket = socket?;
        match command {
            Command::Connect(_) => Some(socket),
            Command::Leave(how, obeyed) => {
                if let Leave::Close = how {
                    let _ = timeout(OPEN_WITHIN, socket.close(None)).await;
                }
                drop(socket);
                self.shared.update(|view| view.online = false);
                let _ = obeyed.send(());
                None
            }
            Command::Send(reports) => {
                // What is lost with the connection is the driver's to say again.
                let _ = timeout(OPEN_WITHIN, say(&mut socket, &self.shared, reports)).await;
                Some(socket)
            }
            Command::Move(late) => {
                let mut old = socket;
                let new = self.reopen().await;
                let _ = timeout(OPEN_WITHIN, say(&mut old, &self.shared, late)).await;
                new
            }
            Command::Restart => {
                drop(socket);
                let former = std::mem::replace(&mut self.instance, Uuid::new_v4());
                let counted = std::mem::take(&mut self.connections);
                let new = self.reopen().await;
                let twin = self.twin(former, counted).await;
                self.shared.update(|view| view.twin = Some(twin));
                new
            }
        }
    }

    fn refused(&mut self, code: u16) -> Option<Socket> {
        self.shared.update(|view| {
            view.refused = Some(code);
            view.online = false;
        });
        None
    }

    async fn reopen(&mut self) -> Option<Socket> {
        let inventory = self.shared.view().inventory();
        self.open(inventory).await
    }

    /// Tries one replica after the other.
    async fn open(&mut self, inventory: Vec<InventoryEntry>) -> Option<Socket> {
        let end = Instant::now() + WITHIN;
        while Instant::now() < end {
            match self.attempt(&inventory).await {
                Ok(socket) => return Some(socket),
                Err(End::Refused(code)) if code != close::NODE_DUPLICATE => {
                    return self.refused(code);
                }
                // Agents do not try again at once, nor together.
                Err(_) => tokio::time::sleep(Duration::from_millis(fastrand::u64(20..60))).await,
            }
        }
        self.shared
            .update(|view| view.violations.push("no replica takes it".to_owned()));
        None
    }

    async fn attempt(&mut self, inventory: &[InventoryEntry]) -> Result<Socket, End> {
        let mut replica = self.world.turn();
        if self.bad == Some(replica) {
            replica = self.world.turn();
        }
        self.bad = Some(replica);
        let address = self.world.replicas[replica].front.address;
        let socket = timeout(OPEN_WITHIN, handshake(address, &self.token));
        let mut socket = socket.await.map_err(|_| End::Again)??;
        let position = self
            .shared
            .view()
            .at
            .clone()
            .filter(|_| fastrand::u8(..8) > 0);
        self.shared.update(|view| view.at.clone_from(&position));
        let hello = self.hello(position, inventory);
        let answer = async {
            socket.send(hello).await.map_err(|_| End::Again)?;
            receive(&mut socket).await
        };
        let welcome = match timeout(WELCOME_WITHIN, answer).await {
            Ok(Ok(ToAgent::Welcome(welcome))) => *welcome,
            Ok(Err(End::Refused(code))) => return Err(End::Refused(code)),
            Ok(Ok(ToAgent::Changes(_)) | Err(End::Again)) | Err(_) => {
                self.doubt();
                return Err(End::Again);
            }
        };
        if let Some(token) = &welcome.node_token {
            self.token.clone_from(token);
        }
        self.bad = None;
        self.shared.update(|view| {
            view.online = true;
            view.welcomes += 1;
            view.welcome = Some(welcome);
        });
        Ok(socket)
    }

    /// What becomes of a run of this agent that comes back after another took over: the
    /// code with which it is refused, if it is. A Master that does not answer, because
    /// its database just came back, says neither.
    async fn twin(&mut self, former: Uuid, counted: u32) -> Option<u16> {
        let instance = std::mem::replace(&mut self.instance, former);
        let connections = std::mem::replace(&mut self.connections, counted);
        let end = Instant::now() + WITHIN;
        let mut answer = self.twin_answer().await;
        while answer.is_none() && Instant::now() < end {
            answer = self.twin_answer().await;
        }
        self.instance = instance;
        self.connections = connections;
        match answer {
            Some(Err(End::Refused(code))) => Some(code),
            _ => {
                self.doubt();
                None
            }
        }
    }

    /// What one replica answers to that run; none if it does not in time.
    async fn twin_answer(&mut self) -> Option<Result<ToAgent, End>> {
        let replica = &self.world.replicas[self.world.turn()];
        let opened = timeout(OPEN_WITHIN, handshake(replica.front.address, &self.token)).await;
        let mut socket = opened.ok()?.ok()?;
        let hello = self.hello(None, &[]);
        let answer = async {
            socket.send(hello).await.map_err(|_| End::Again)?;
            receive(&mut socket).await
        };
        let answer = timeout(WELCOME_WITHIN, answer).await.ok()?;
        // One that broke off said nothing either.
        (!matches!(answer, Err(End::Again))).then_some(answer)
    }

    /// What a frozen replica read before it froze, it does when it wakes.
    fn doubt(&self) {
        self.shared.view().doubtful_until_ms = self.world.now_ms() + DOUBT_MS;
    }

    fn hello(&mut self, position: Option<Position>, inventory: &[InventoryEntry]) -> Message {
        self.connections += 1;
        let hello = Hello {
            protocol: PROTOCOL,
            engine_id: self.engine.clone(),
            boot_id: "boot".to_owned(),
            instance: Some(self.instance),
            connection: self.connections,
            position,
            facts: facts(&self.engine),
            inventory: inventory.to_vec(),
        };
        text(&FromAgent::Hello(Box::new(hello)))
    }
}

fn facts(engine: &str) -> Facts {
    Facts {
        hostname: engine.to_owned(),
        agent_version: "0.1.0".to_owned(),
        docker_version: "20.10".to_owned(),
        kernel_version: "6.1".to_owned(),
        os: "Debian".to_owned(),
        labels: vec![],
        region: "default".to_owned(),
        public_ip: None,
        private_ip: None,
        behind_nat: None,
        cpus: 2,
        mem_total_bytes: 1 << 30,
        keys: None,
        networks: None,
    }
}

async fn handshake(address: std::net::SocketAddr, token: &str) -> Result<Socket, End> {
    let mut request = format!("ws://{address}/v1/agent")
        .into_client_request()
        .unwrap();
    let bearer = format!("Bearer {token}").parse().unwrap();
    request.headers_mut().insert("authorization", bearer);
    let stream = TcpStream::connect(address).await.map_err(|_| End::Again)?;
    stream.set_nodelay(true).map_err(|_| End::Again)?;
    let opened = tokio_tungstenite::client_async(request, stream).await;
    Ok(opened.map_err(|_| End::Again)?.0)
}

fn text(message: &FromAgent) -> Message {
    Message::text(serde_json::to_string(message).unwrap())
}

async fn say(socket: &mut Socket, shared: &Shared, placements: Vec<PlacementReport>) {
    let applied = shared
        .view()
        .at
        .as_ref()
        .map_or(Revision::ZERO, |at| at.revision);
    let report = Report {
        applied,
        placements,
        commands: vec![],
        peers: vec![],
    };
    let _ = socket
        .send(text(&FromAgent::Report(Box::new(report))))
        .await;
}

/// Takes what the Master says until the session ends.
async fn listen(socket: &mut Socket, shared: &Shared) -> End {
    let mut ping: Interval = tokio::time::interval(PING_EVERY);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            message = socket.next() => {
                heard = Instant::now();
                match parse(message) {
                    Ok(Some(ToAgent::Changes(changes))) => shared.update(|view| view.merge(*changes)),
                    Ok(Some(ToAgent::Welcome(_))) => shared.update(|view| {
                        view.violations.push("a second welcome".to_owned());
                    }),
                    Ok(None) => {}
                    Err(end) => return end,
                }
            }
            _ = ping.tick() => {
                let sent = timeout(OPEN_WITHIN, socket.send(Message::Ping(Vec::new().into())));
                if heard.elapsed() > DEAD_AFTER || !matches!(sent.await, Ok(Ok(()))) {
                    return End::Again;
                }
            }
        }
    }
}

async fn receive(socket: &mut Socket) -> Result<ToAgent, End> {
    loop {
        if let Some(message) = parse(socket.next().await)? {
            return Ok(message);
        }
    }
}

type Received = Option<Result<Message, tokio_tungstenite::tungstenite::Error>>;

fn parse(message: Received) -> Result<Option<ToAgent>, End> {
    match message {
        Some(Ok(Message::Text(text))) => Ok(Some(serde_json::from_str(&text).unwrap())),
        Some(Ok(Message::Close(Some(frame)))) => Err(match u16::from(frame.code) {
            code @ (close::BAD_TOKEN
            | close::VERSION
            | close::NODE_REMOVED
            | close::GRID_FULL_NODES
            | close::NODE_DUPLICATE
            | close::BAD_FRAME) => End::Refused(code),
            _ => End::Again,
        }),
        Some(Ok(_)) => Ok(None),
        Some(Err(_)) | None => Err(End::Again),
    }
}
