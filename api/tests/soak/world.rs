//! What the soak breaks: replicas of the Master as processes, a Postgres and a Redis of
//! their own, and proxies in front of them. Nothing here outlives the test, however it
//! ends: the processes are in its process group, and a container ends with its input.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, RwLock};
use tokio::time::Instant;
use tokio_postgres::NoTls;
use uuid::Uuid;

use crate::containers::{Postgres, Redis};
use crate::proxy::Proxy;

pub const ADMIN: &str = "admin-token-of-the-soak";
const SECRET: &str = "a secret of the soak, long enough to sign";

/// How long a replica's row counts as alive. A machine under load renews late.
pub const REPLICA_TTL: Duration = Duration::from_millis(1500);
/// How long after a replica's end its nodes are not lost yet. Agents of the soak
/// notice sooner than this, or it is the Master's fault.
pub const REPLICA_LOSS: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(150);

/// A replica of the Master between two proxies.
pub struct Replica {
    /// Where clients and agents reach it.
    pub front: Proxy,
    /// Through which it reaches Postgres, and Redis.
    pub back: Proxy,
    pub bells: Proxy,
    listen: SocketAddr,
    child: Mutex<Child>,
    /// Counts its deaths: what was sent to one that died comes to nothing.
    pub deaths: AtomicUsize,
    /// When it was thawed last, in milliseconds of the world; far away while it is frozen.
    thawed_ms: AtomicU64,
}

/// Everything that is shared by all grids of a run.
pub struct World {
    pub postgres: Postgres,
    redis: Redis,
    pub replicas: Vec<Replica>,
    pub began: Instant,
    pub logs: PathBuf,
    /// Held by a fault while it lasts, and shared by what must have none meanwhile.
    pub calm: RwLock<()>,
    /// What the Master did that it never may: a request answered with 500, an end by itself.
    pub failures: std::sync::Mutex<Vec<String>>,
    next: AtomicUsize,
}

impl World {
    pub async fn start(replicas: usize) -> Arc<Self> {
        let logs = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("soak-{}", Uuid::new_v4().simple()));
        std::fs::create_dir_all(&logs).unwrap();
        let (postgres, redis) = tokio::join!(Postgres::start(&logs), Redis::start(&logs));
        let migrated = Command::new(env!("CARGO_BIN_EXE_kontena-api"))
            .arg("migrate")
            .env("KONTENA_DATABASE_URL", postgres.url(postgres.address))
            .status();
        assert!(migrated.await.unwrap().success(), "the migrations failed");
        let mut world = Self {
            postgres,
            replicas: vec![],
            began: Instant::now(),
            logs,
            calm: RwLock::new(()),
            failures: std::sync::Mutex::default(),
            redis,
            next: AtomicUsize::new(0),
        };
        for _ in 0..replicas {
            let replica = world.replica().await;
            world.replicas.push(replica);
        }
        for replica in &world.replicas {
            replica.answers().await;
        }
        Arc::new(world)
    }

    async fn replica(&self) -> Replica {
        let back = Proxy::start(self.postgres.address).await;
        let listen = {
            let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            free.local_addr().unwrap()
        };
        let front = Proxy::start(listen).await;
        let bells = Proxy::start(self.redis.address).await;
        let child = self.spawn(listen, back.address, bells.address);
        Replica {
            front,
            back,
            bells,
            listen,
            child: Mutex::new(child),
            deaths: AtomicUsize::new(0),
            thawed_ms: AtomicU64::new(0),
        }
    }

    fn spawn(&self, listen: SocketAddr, database: SocketAddr, redis: SocketAddr) -> Child {
        let ms = |duration: Duration| duration.as_millis().to_string();
        Command::new(env!("CARGO_BIN_EXE_kontena-api"))
            .arg("serve")
            .env("KONTENA_DATABASE_URL", self.postgres.url(database))
            .env("KONTENA_DATABASE_CONNECTIONS", "12")
            .env("KONTENA_REDIS_URL", format!("redis://{redis}"))
            .env("KONTENA_SECRET", SECRET)
            .env("KONTENA_ADMIN_TOKEN", ADMIN)
            .env("KONTENA_LISTEN", listen.to_string())
            .env("KONTENA_REPLICA_TTL_MS", ms(REPLICA_TTL))
            .env("KONTENA_REPLICA_LOSS_MS", ms(REPLICA_LOSS))
            .env("KONTENA_TICK_MS", ms(TICK))
            .env(
                "KONTENA_LOG",
                std::env::var("KONTENA_SOAK_LOG").unwrap_or_else(|_| "warn".into()),
            )
            .stdout(log(&self.logs, &format!("api-{}", listen.port())))
            .stderr(log(&self.logs, &format!("api-{}", listen.port())))
            .kill_on_drop(true)
            .spawn()
            .expect("the replica starts")
    }

    /// Ends a replica and starts it again after `pause`: kills it, or lets it stop.
    pub async fn end(&self, replica: &Replica, kills: bool, pause: Duration) {
        let mut child = replica.child.lock().await;
        if let Some(status) = child.try_wait().unwrap() {
            self.fail(format!("a replica ended by itself: {status}"));
        } else if kills {
            child.kill().await.unwrap();
        } else {
            Replica::signal(&child, Signal::SIGTERM);
            let stopped = tokio::time::timeout(STOPPED_WITHIN, child.wait()).await;
            if !stopped.is_ok_and(|status| status.unwrap().success()) {
                self.fail("a replica does not stop well".to_owned());
                child.kill().await.unwrap();
            }
        }
        replica.deaths.fetch_add(1, Ordering::SeqCst);
        // So long it is away.
        tokio::time::sleep(pause).await;
        *child = self.spawn(replica.listen, replica.back.address, replica.bells.address);
        drop(child);
        replica.answers().await;
    }

    pub fn fail(&self, what: String) {
        self.failures.lock().unwrap().push(what);
    }

    pub async fn freeze(&self, replica: &Replica) {
        replica.thawed_ms.store(u64::MAX, Ordering::SeqCst);
        Replica::signal(&*replica.child.lock().await, Signal::SIGSTOP);
    }

    pub async fn thaw(&self, replica: &Replica) {
        Replica::signal(&*replica.child.lock().await, Signal::SIGCONT);
        replica.thawed_ms.store(self.now_ms(), Ordering::SeqCst);
    }

    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap()
    }

    /// A replica for the next attempt: each in turn.
    pub fn turn(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed) % self.replicas.len()
    }

    /// A connection to Postgres that no fault but its own end concerns.
    pub async fn sql(&self) -> tokio_postgres::Client {
        let url = self.postgres.url(self.postgres.address);
        within("a connection to Postgres", || async {
            let (client, connection) = tokio_postgres::connect(&url, NoTls).await.ok()?;
            tokio::spawn(connection);
            Some(client)
        })
        .await
    }
}

impl Replica {
    fn signal(child: &Child, signal: Signal) {
        let pid = child.id().expect("it was not waited for");
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
    }

    /// Whether something that was sent to it before `sent` could still take effect.
    pub fn may_still_act(&self, sent_ms: u64, now_ms: u64, settled: Duration) -> bool {
        let thawed = self.thawed_ms.load(Ordering::SeqCst).max(sent_ms);
        now_ms < thawed.saturating_add(u64::try_from(settled.as_millis()).unwrap())
    }

    /// Waits until it serves.
    pub async fn answers(&self) {
        within("a replica serves", || async {
            tokio::net::TcpStream::connect(self.listen).await.ok()
        })
        .await;
    }
}

/// The longest that a replica may take to stop: it drains for two seconds.
const STOPPED_WITHIN: Duration = Duration::from_secs(20);
/// The longest that the world may take to become as it must.
const WITHIN: Duration = Duration::from_secs(60);

/// Asks until there is an answer.
pub async fn within<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let end = Instant::now() + WITHIN;
    loop {
        if let Some(value) = ask().await {
            return value;
        }
        assert!(Instant::now() < end, "in vain: {what}");
        // Between two looks at a state, which have a bound.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn log(folder: &Path, name: &str) -> Stdio {
    let path = folder.join(format!("{name}.log"));
    let file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(path);
    file.unwrap().into()
}
