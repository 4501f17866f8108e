//! `kontena node`.

use clap::Subcommand;
use time::OffsetDateTime;

use crate::args::Force;
use crate::failure::Failure;
use crate::output::{confirm, tables};
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the nodes of the grid
    #[command(visible_alias = "list")]
    Ls,
    /// Shows a node
    Show {
        /// Its name
        node: String,
    },
    /// Asks a node to change the key of its sealed paths
    RotateKey {
        /// Its name
        node: String,
    },
    /// Removes a node from the grid
    #[command(visible_alias = "remove")]
    Rm {
        /// Its name
        node: String,
        #[command(flatten)]
        force: Force,
    },
}

pub(crate) async fn run(command: Command, session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    let grid = session.grid(&client).await?;
    match command {
        Command::Ls => {
            let nodes = client.node_list(&grid).await?;
            session.out.list(&nodes, |nodes| {
                tables::nodes(nodes, OffsetDateTime::now_utc())
            });
        }
        Command::Show { node } => {
            session
                .out
                .show(&node, &client.node_show(&grid, &node).await?)?;
        }
        Command::RotateKey { node } => {
            let step = session
                .out
                .step(format!("asking node {node} for a new key"));
            client.node_key_turn(&grid, &node).await?;
            step.done();
            session.out.empty();
        }
        Command::Rm { node, force } => {
            confirm(&node, force.force)?;
            let step = session.out.step(format!("removing node {node}"));
            client.node_remove(&grid, &node).await?;
            step.done();
            session.out.empty();
        }
    }
    Ok(())
}
