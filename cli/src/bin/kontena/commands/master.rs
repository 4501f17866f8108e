//! `kontena master`: the Masters that this machine knows.

use clap::Subcommand;
use kontena::Client;
use kontena::config::{Config, Server};
use serde_json::json;

use crate::failure::Failure;
use crate::output::tables;
use crate::session::{Session, read_file};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Stores a Master and makes it the current one
    Login {
        /// Where it answers, such as https://master.example
        url: String,
        /// The access token
        #[arg(short, long, env = "KONTENA_TOKEN", hide_env_values = true)]
        token: String,
        /// A file with the certificates to trust, and no others [default: the machine's]
        #[arg(long, value_name = "FILE")]
        ca: Option<String>,
        /// The name to store it under [default: the host's name]
        #[arg(short, long)]
        name: Option<String>,
    },
    /// Lists the stored Masters
    #[command(visible_alias = "list")]
    Ls,
    /// Makes a stored Master the current one
    Use {
        /// Its name
        name: String,
    },
    /// Shows the current Master
    Current,
    /// Forgets a stored Master
    Logout {
        /// Its name [default: the current one's]
        name: Option<String>,
    },
}

pub(crate) async fn run(command: Command, session: &Session) -> Result<(), Failure> {
    match command {
        Command::Login {
            url,
            token,
            ca,
            name,
        } => login(session, url, token, ca, name).await,
        Command::Ls => list(session),
        Command::Use { name } => select(session, &name),
        Command::Current => current(session),
        Command::Logout { name } => logout(session, name),
    }
}

async fn login(
    session: &Session,
    url: String,
    token: String,
    ca: Option<String>,
    name: Option<String>,
) -> Result<(), Failure> {
    let ca = ca.as_deref().map(read_file).transpose()?;
    let client = Client::new(&url, &token, ca.as_deref().map(str::as_bytes))?;
    let step = session.out.step(format!("logging in to {url}"));
    client.ping().await?;
    // Ping needs no token, this does.
    let grids = client.grid_list().await?.grids;
    let name = name.or_else(|| client.url().host_str().map(str::to_owned));
    let name = name.unwrap_or_else(|| "default".to_owned());
    let mut config = session.config()?;
    let chosen = config.server(&name).and_then(|known| known.grid.clone());
    let known = chosen.filter(|chosen| grids.iter().any(|grid| grid.name == *chosen));
    let grid = known.or_else(|| match &grids[..] {
        [only] => Some(only.name.clone()),
        _ => None,
    });
    let url = client.url().as_str().trim_end_matches('/').to_owned();
    config.put(Server {
        name,
        url,
        token: Some(token),
        grid,
        ca,
        ..Server::default()
    });
    session.save(&config)?;
    step.done();
    Ok(())
}

fn list(session: &Session) -> Result<(), Failure> {
    let config = session.config()?;
    let masters: Vec<_> = config
        .servers
        .iter()
        .map(|server| shown(&config, server))
        .collect();
    session
        .out
        .list(&json!({ "masters": masters }), |_| tables::masters(&config));
    Ok(())
}

/// A Master without its token.
fn shown(config: &Config, server: &Server) -> serde_json::Value {
    let current = config.current_server.as_ref() == Some(&server.name);
    json!({"name": server.name, "url": server.url, "grid": server.grid, "current": current})
}

fn select(session: &Session, name: &str) -> Result<(), Failure> {
    let mut config = session.config()?;
    if config.server(name).is_none() {
        return Err(not_stored(name));
    }
    config.current_server = Some(name.to_owned());
    session.save(&config)?;
    session.out.line(&format!("using Master {name}"));
    Ok(())
}

fn not_stored(name: &str) -> Failure {
    Failure::Usage(format!("no Master is stored under the name {name:?}"))
}

fn current(session: &Session) -> Result<(), Failure> {
    let config = session.config()?;
    let none = || Failure::Usage("no Master: kontena master login URL --token TOKEN".to_owned());
    let server = config.current().ok_or_else(none)?;
    let line = format!("{} {}", server.name, server.url);
    session.out.list(&shown(&config, server), |_| line);
    Ok(())
}

fn logout(session: &Session, name: Option<String>) -> Result<(), Failure> {
    let mut config = session.config()?;
    let none = || Failure::Usage("there is no current Master".to_owned());
    let name = name
        .or_else(|| config.current_server.clone())
        .ok_or_else(none)?;
    if !config.remove(&name) {
        return Err(not_stored(&name));
    }
    session.save(&config)?;
    session.out.line(&format!("forgot Master {name}"));
    Ok(())
}
