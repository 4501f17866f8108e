//! `kontena node`.

use clap::Subcommand;
use kontena::Client;
use kontena_schema::http::nodes::{NodePeer, NodePeers};
use serde::Serialize;
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
    /// Shows how a node reaches the others, as it last measured
    Peers {
        /// Its name
        node: String,
    },
    /// Shows the way between two nodes in both directions, as they last measured;
    /// fails where frames do not arrive
    Ping {
        /// The one node
        from: String,
        /// The other node
        to: String,
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
        Command::Peers { node } => {
            let peers = client.node_peers(&grid, &node).await?;
            session.out.list(&peers, tables::peers);
        }
        Command::Ping { from, to } => ping(session, &client, &grid, (from, to)).await?,
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

/// The ways between two nodes.
#[derive(Debug, Serialize)]
pub(crate) struct Ping {
    pub(crate) ways: Vec<Way>,
}

/// One direction.
#[derive(Debug, Serialize)]
pub(crate) struct Way {
    pub(crate) from: String,
    pub(crate) to: NodePeer,
}

async fn ping(
    session: &Session,
    client: &Client,
    grid: &str,
    (a, b): (String, String),
) -> Result<(), Failure> {
    if a == b {
        return Err(Failure::Usage("a node has no way to itself".to_owned()));
    }
    // Both are asked first, so that a name that is wrong is told as such.
    let mut answers = Vec::new();
    for (from, to) in [(&a, &b), (&b, &a)] {
        answers.push((from, to, client.node_peers(grid, from).await?));
    }
    let way = |(from, to, answer): (&String, &String, NodePeers)| {
        let found = answer.peers.into_iter().find(|peer| peer.node == *to);
        found.map(|to| Way {
            from: from.clone(),
            to,
        })
    };
    let ping = Ping {
        ways: answers.into_iter().filter_map(way).collect(),
    };
    session.out.list(&ping, tables::ping);
    // What one that is away said last is no answer.
    if let Some(Way { to, .. }) = ping.ways.iter().find(|way| !way.to.connected) {
        return Err(Failure::NoWay(format!("{} is offline", to.node)));
    }
    let broken = |way: &&Way| way.to.unreachable.is_some() || way.to.path.is_none();
    match ping.ways.iter().find(broken) {
        None => Ok(()),
        Some(Way { from, to }) => {
            let unknown = "no path was reported yet".to_owned();
            let why = to.unreachable.clone().unwrap_or(unknown);
            Err(Failure::NoWay(format!(
                "{from} does not reach {}: {why}",
                to.node
            )))
        }
    }
}
