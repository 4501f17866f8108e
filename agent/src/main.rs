//! The agent: makes its host a node of a Kontena grid.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use kontena_agent::config::Args;
use kontena_agent::run::run;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let config = match Args::parse().check() {
        Ok(config) => config,
        Err(err) => {
            eprintln!("{err}");
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&config.log))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("nothing else has installed one");
    tracing::info!(version = env!("CARGO_PKG_VERSION"), ?config, "starting");
    match run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            tracing::error!(%err, "stopping");
            ExitCode::FAILURE
        }
    }
}
