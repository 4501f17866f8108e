//! `kontena grid`.

use clap::Subcommand;
use kontena_schema::http::grids::{GridCreate, GridWarning};

use super::trust;
use crate::args::Force;
use crate::failure::Failure;
use crate::output::{confirm, print, tables};
use crate::session::Session;

/// How many nodes are warned of by name; more are one mistake.
const WARNINGS_SHOWN: usize = 10;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes a grid and makes it the current one
    Create(Create),
    /// Lists the grids
    #[command(visible_alias = "list")]
    Ls,
    /// Shows a grid
    Show {
        /// Its name [default: the current one's]
        name: Option<String>,
        /// Prints only the token with which hosts join
        #[arg(long)]
        token: bool,
    },
    /// Makes a grid the current one
    Use {
        /// Its name
        name: String,
    },
    /// Says where the overlay may run in clear
    #[command(subcommand)]
    TrustedSubnet(trust::Command),
    /// Removes a grid that has no nodes and no services
    #[command(visible_alias = "remove")]
    Rm {
        /// Its name
        name: String,
        #[command(flatten)]
        force: Force,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Its name
    name: String,
    /// Members of its etcd cluster, 1 to 7 [default: 1]
    #[arg(long, value_name = "NUMBER")]
    initial_size: Option<u16>,
    /// What may be allocated [default: 10.81.0.0/19]
    #[arg(long, value_name = "CIDR")]
    subnet: Option<String>,
    /// The on-link prefix of overlay interfaces [default: 10.81.0.0/17]
    #[arg(long, value_name = "CIDR")]
    supernet: Option<String>,
    /// The addresses of nodes inside encrypted paths, a /24 [default: 100.127.81.0/24]
    #[arg(long, value_name = "CIDR")]
    inner_subnet: Option<String>,
    /// A network in which the overlay may run in clear; repeatable
    #[arg(long = "trusted-subnet", value_name = "CIDR")]
    trusted_subnets: Vec<String>,
    /// Seconds until the addresses of a lost node are released [default: 10]
    #[arg(long = "grace", value_name = "SECONDS")]
    grace_s: Option<u32>,
}

pub(crate) async fn run(command: Command, session: &Session) -> Result<(), Failure> {
    match command {
        Command::Create(grid) => create(session, grid).await,
        Command::Ls => list(session).await,
        Command::Show { name, token } => show(session, name, token).await,
        Command::Use { name } => select(session, &name).await,
        Command::TrustedSubnet(command) => trust::run(command, session).await,
        Command::Rm { name, force } => remove(session, &name, force).await,
    }
}

async fn create(session: &Session, grid: Create) -> Result<(), Failure> {
    let step = session.out.step(format!("creating grid {}", grid.name));
    let body = GridCreate {
        name: grid.name,
        initial_size: grid.initial_size,
        subnet: grid.subnet,
        supernet: grid.supernet,
        inner_subnet: grid.inner_subnet,
        trusted_subnets: Some(grid.trusted_subnets).filter(|subnets| !subnets.is_empty()),
        grace_s: grid.grace_s,
    };
    let created = session.client()?.grid_create(&body).await?;
    session.grid_use(Some(&created.name))?;
    step.done();
    for line in warnings(&created.warnings) {
        session.out.warn(&line);
    }
    session.out.changed(&created);
    Ok(())
}

/// What is said of nodes that the grid would hit, a line each.
fn warnings(all: &[GridWarning]) -> Vec<String> {
    let said = all.iter().take(WARNINGS_SHOWN);
    let mut lines: Vec<_> = said.map(|warning| warning.text.clone()).collect();
    let more = all.len().saturating_sub(WARNINGS_SHOWN);
    if more > 0 {
        lines.push(format!("and {more} more nodes; `-o json` has them all"));
    }
    lines
}

async fn list(session: &Session) -> Result<(), Failure> {
    let grids = session.client()?.grid_list().await?;
    let current = session.grid_named()?;
    session
        .out
        .list(&grids, |grids| tables::grids(grids, current.as_deref()));
    Ok(())
}

async fn show(session: &Session, name: Option<String>, token: bool) -> Result<(), Failure> {
    let client = session.client()?;
    let name = match name {
        Some(name) => name,
        None => session.grid(&client).await?,
    };
    let mut grid = client.grid_show(&name).await?;
    if !token {
        // On a screen a secret shows only where it is asked for.
        grid.token = grid.token.filter(|_| session.out.is_json());
        return session.out.show(&name, &grid);
    }
    let hidden = || Failure::Usage(format!("the Master does not show the token of {name}"));
    print(&grid.token.ok_or_else(hidden)?);
    Ok(())
}

async fn select(session: &Session, name: &str) -> Result<(), Failure> {
    session.client()?.grid_show(name).await?;
    if !session.grid_use(Some(name))? {
        let text =
            "the Master comes from KONTENA_URL and is not stored: say --grid or KONTENA_GRID";
        return Err(Failure::Usage(text.to_owned()));
    }
    session.out.line(&format!("using grid {name}"));
    Ok(())
}

async fn remove(session: &Session, name: &str, force: Force) -> Result<(), Failure> {
    confirm(name, force.force)?;
    let step = session.out.step(format!("removing grid {name}"));
    session.client()?.grid_remove(name).await?;
    if session.grid_named()?.as_deref() == Some(name) {
        session.grid_use(None)?;
    }
    step.done();
    session.out.empty();
    Ok(())
}
