//! `kontena-api`: one replica of the Master.

use std::io::{IsTerminal, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use kontena_api::config::{DatabaseConfig, HealthConfig, ServeConfig};
use kontena_api::db;
use kontena_api::serve::{Replica, terminated};
use mimalloc::MiMalloc;
use tracing_subscriber::EnvFilter;

/// With the C library's, allocations take a fifth of a loaded replica's own time
/// (load/README.md).
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// A replica of the Kontena Master.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// What to log, such as `info` or `kontena_api=debug`.
    #[arg(long, env = "KONTENA_LOG", default_value = "info", global = true)]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the HTTP API and the agents.
    Serve(ServeConfig),
    /// Bring the database schema up to date.
    Migrate(DatabaseConfig),
    /// Exit with 0 if the replica on this host serves.
    Healthcheck(HealthConfig),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Healthcheck(config) => healthcheck(config.listen),
        Command::Migrate(config) => run(&cli.log, migrate(&config)),
        Command::Serve(config) => match config.faults() {
            faults if faults.is_empty() => run(&cli.log, serve(&config)),
            faults => Err(faults.join("\n")),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kontena-api: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(log: &str, work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let filter = EnvFilter::try_new(log).map_err(|error| format!("KONTENA_LOG: {error}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(work)
}

async fn migrate(config: &DatabaseConfig) -> Result<(), String> {
    let url = config.database_url.expose();
    let applied = db::migrate(url).await.map_err(|error| error.to_string())?;
    tracing::info!(applied, "the schema is up to date");
    Ok(())
}

async fn serve(config: &ServeConfig) -> Result<(), String> {
    let replica = Replica::start(config)
        .await
        .map_err(|error| error.to_string())?;
    let stop = async {
        if let Err(error) = terminated().await {
            tracing::error!(%error, "signals cannot be heard");
        }
    };
    replica.serve(stop).await.map_err(|error| error.to_string())
}

/// Asks a replica for `/v1/ping`, with no more than the standard library.
fn healthcheck(mut address: SocketAddr) -> Result<(), String> {
    const WITHIN: Duration = Duration::from_secs(2);
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, WITHIN)?;
        stream.set_read_timeout(Some(WITHIN))?;
        stream.write_all(b"GET /v1/ping HTTP/1.0\r\nhost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| format!("{address}: {error}"))?;
    let status = answer.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        Ok(())
    } else {
        Err(format!("{address}: {status}"))
    }
}
