//! `kontena grid trusted-subnet`.

use clap::Subcommand;
use kontena_schema::http::grids::{Trust, TrustChange};

use crate::failure::Failure;
use crate::output::tables;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the networks in which the overlay runs in clear
    #[command(visible_alias = "list")]
    Ls,
    /// Lets the overlay run in clear between nodes in a network
    Add(Networks),
    /// Has the overlay encrypted again between nodes in a network
    #[command(visible_alias = "remove")]
    Rm(Networks),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Networks {
    /// The networks, such as 10.0.0.0/8
    #[arg(required = true, value_name = "CIDR")]
    networks: Vec<String>,
    /// Only tells how many pairs of nodes would change
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(command: Command, session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    let grid = session.grid(&client).await?;
    let body = match command {
        Command::Ls => {
            let trust = client.trust_show(&grid).await?;
            session.out.list(&trust, tables::trust);
            return Ok(());
        }
        Command::Add(of) => TrustChange {
            add: of.networks,
            dry_run: of.dry_run,
            ..TrustChange::default()
        },
        Command::Rm(of) => TrustChange {
            remove: of.networks,
            dry_run: of.dry_run,
            ..TrustChange::default()
        },
    };
    let trust = client.trust_change(&grid, &body).await?;
    session.out.line(&told(&trust, body.dry_run));
    session.out.changed(&trust);
    Ok(())
}

/// What a change did, or would do, in one line.
fn told(trust: &Trust, dry_run: bool) -> String {
    let verb = if dry_run {
        "that would turn"
    } else {
        "that turned"
    };
    format!(
        "pairs of nodes {verb} fast: {}, sealed: {}; then in all fast: {}, sealed: {}",
        trust.to_fast, trust.to_sealed, trust.fast_pairs, trust.sealed_pairs
    )
}
