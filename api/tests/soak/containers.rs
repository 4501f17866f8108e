//! The servers that the Master stands on, in containers of the stack's images. Each
//! ends with its input, which ends with the test, and is removed then.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;
use tokio_postgres::NoTls;
use uuid::Uuid;

use crate::world::{log, within};

const PASSWORD: &str = "soak";

/// Makes the cluster and serves; a word on the input is a crash and a new start.
const POSTGRES: &str = r#"
serve() { entrypoint -c max_connections=200 -c shared_buffers=256MB >&2 & server=$!; }
crash() { kill -QUIT "$server"; wait "$server"; }
serve
while read -r word; do crash; serve; echo "$word"; done
crash
"#;

const REDIS: &str = r#"
redis-server --bind 0.0.0.0 --protected-mode no --save "" --appendonly no >&2 & server=$!
while read -r; do :; done
kill "$server"
"#;

struct Container {
    ip: Ipv4Addr,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _client: Child,
}

impl Container {
    async fn start(logs: &Path, image: &str, env: &[&str], script: &str) -> Self {
        // Made by infra/bootstrap for the tests' stack.
        let project = std::env::var("KONTENA_TEST_PROJECT");
        let project = project.unwrap_or_else(|_| "kontena-test".to_owned());
        let name = format!("kontena-soak-{}", Uuid::new_v4().simple());
        let mut command = Command::new("docker");
        command
            .args(["run", "--rm", "--interactive", "--name", &name])
            .args(["--shm-size", "512m", "--label", "io.kontena.soak"]);
        for variable in env {
            command.args(["--env", variable]);
        }
        let image = format!("kontena/{image}:{project}");
        let mut client = command
            .args(["--entrypoint", "bash", &image, "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log(logs, &image.replace(['/', ':'], "-")))
            .kill_on_drop(true)
            .spawn()
            .expect("docker is there");
        let ip = within("a container has an address", || async {
            let format = "{{.NetworkSettings.IPAddress}}";
            let shown = Command::new("docker")
                .args(["inspect", "--format", format, &name])
                .output();
            let shown = String::from_utf8(shown.await.unwrap().stdout).unwrap();
            shown.trim().parse().ok()
        })
        .await;
        Self {
            ip,
            input: client.stdin.take().unwrap(),
            output: BufReader::new(client.stdout.take().unwrap()).lines(),
            _client: client,
        }
    }
}

/// It carries bells.
pub struct Redis {
    pub address: SocketAddr,
    _container: Container,
}

impl Redis {
    pub async fn start(logs: &Path) -> Self {
        let container = Container::start(logs, "redis", &[], REDIS).await;
        Self {
            address: SocketAddr::from((container.ip, 6379)),
            _container: container,
        }
    }
}

/// A Postgres whose settings are those of the image: every commit is on disk.
pub struct Postgres {
    pub address: SocketAddr,
    container: Mutex<Container>,
}

impl Postgres {
    pub async fn start(logs: &Path) -> Self {
        let password = format!("POSTGRES_PASSWORD={PASSWORD}");
        let env = ["POSTGRES_USER=kontena", "POSTGRES_DB=kontena", &password];
        let container = Container::start(logs, "postgres", &env, POSTGRES).await;
        let postgres = Self {
            address: SocketAddr::from((container.ip, 5432)),
            container: Mutex::new(container),
        };
        postgres.answers().await;
        postgres
    }

    pub fn url(&self, address: SocketAddr) -> String {
        format!("postgres://kontena:{PASSWORD}@{address}/kontena")
    }

    async fn answers(&self) {
        let url = self.url(self.address);
        within("Postgres serves", || async {
            let connected = tokio_postgres::connect(&url, NoTls).await;
            connected.ok().map(drop)
        })
        .await;
    }

    /// Ends Postgres without a checkpoint or a word to its clients, and starts it again.
    pub async fn crash(&self) {
        let mut container = self.container.lock().await;
        container.input.write_all(b"again\n").await.unwrap();
        let said = container.output.next_line().await.unwrap();
        said.expect("it says that it started again");
        self.answers().await;
    }
}
