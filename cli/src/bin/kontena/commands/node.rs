//! `kontena node`.

use clap::Subcommand;
use kontena_schema::limits::PING_COUNT_MAX;
use time::OffsetDateTime;

use super::ping;
use crate::args::Force;
use crate::failure::Failure;
use crate::output::{confirm_with_data, tables};
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
    /// Shows how a node reaches the others, as it last measured
    Peers {
        /// Its name
        node: String,
    },
    /// Lets two nodes ping each other over the overlay, and shows both ways;
    /// fails where packets do not arrive
    ///
    /// The echoes take the way that frames of containers take now, encrypted or not.
    /// The last of them has the overlay's full length. HANDSHAKE is when the encrypted
    /// path between the two was last proven.
    Ping {
        /// The one node
        from: String,
        /// The other node
        to: String,
        /// How many echoes each of them sends
        #[arg(short, long, default_value_t = 5, value_name = "N",
            value_parser = clap::value_parser!(u32).range(1..=i64::from(PING_COUNT_MAX)))]
        count: u32,
    },
    /// Asks a node to change the key of its encrypted paths
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
        Command::Peers { node } => {
            let peers = client.node_peers(&grid, &node).await?;
            session.out.list(&peers, |peers| {
                tables::peers(peers, OffsetDateTime::now_utc())
            });
        }
        Command::Ping { from, to, count } => {
            ping::run(session, &client, &grid, (&from, &to), count).await?;
        }
        Command::RotateKey { node } => {
            let step = session
                .out
                .step(format!("asking node {node} for a new key"));
            client.node_key_turn(&grid, &node).await?;
            step.done();
            session.out.line(&format!(
                "{node} begins to use its new key once every connected node knows the key, mostly \
                 within 30 s; `kontena node show {node}` has the key in use, and who is waited for"
            ));
            session.out.empty();
        }
        Command::Rm { node, force } => {
            let data = "What its instances keep in volumes is removed with it";
            confirm_with_data(&node, force.force, Some(data))?;
            let step = session.out.step(format!("removing node {node}"));
            client.node_remove(&grid, &node).await?;
            step.done();
            session.out.empty();
        }
    }
    Ok(())
}
