//! `kontena address`.

use std::net::Ipv4Addr;

use clap::{Subcommand, ValueEnum};
use kontena::Client;
use kontena::client::{AddressFilter, HistoryFilter};
use kontena_schema::http::addresses::{AddressTake, Addresses, History, HolderKind};
use kontena_schema::limits::PAGE_MAX;

use crate::failure::Failure;
use crate::output::tables;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the addresses that are held
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Shows an address, held or free
    Show {
        /// The address
        address: Ipv4Addr,
    },
    /// Reserves addresses for what is no container
    Reserve(Reserve),
    /// Releases reserved addresses
    Release {
        /// The addresses
        #[arg(required = true, value_name = "ADDRESS")]
        addresses: Vec<Ipv4Addr>,
    },
    /// Shows who has held an address, the latest first
    History {
        /// The address
        address: Ipv4Addr,
        /// Only the step in force at this moment, such as 2026-01-31T12:01:00Z
        #[arg(long, value_name = "TIME")]
        at: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Ls {
    /// Only those that such a holder has
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// Only those of an instance, a reservation or a node; stack/service for all of a service
    #[arg(long, value_name = "NAME")]
    holder: Option<String>,
    /// Only those on this node
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Reserve {
    /// Who will hold them, in words of your own
    name: String,
    /// How many [default: 1]
    #[arg(long, value_name = "NUMBER", conflicts_with = "address")]
    count: Option<u32>,
    /// A certain address in place of the next free one
    #[arg(long)]
    address: Option<Ipv4Addr>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// An instance of a service
    Placement,
    /// A reservation
    Reservation,
    /// A node
    Node,
}

impl From<Kind> for HolderKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Placement => Self::Placement,
            Kind::Reservation => Self::Reservation,
            Kind::Node => Self::Node,
        }
    }
}

pub(crate) async fn run(command: Command, session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    let grid = session.grid(&client).await?;
    match command {
        Command::Ls(ls) => {
            let filter = AddressFilter {
                kind: ls.kind.map(HolderKind::from),
                holder: ls.holder,
                node: ls.node,
                after: None,
                limit: Some(PAGE_MAX),
            };
            let all = list(&client, &grid, filter).await?;
            session.out.list(&all, tables::addresses);
        }
        Command::Show { address } => {
            let shown = client.address_show(&grid, address).await?;
            session.out.show(&address.to_string(), &shown)?;
        }
        Command::Reserve(take) => reserve(session, &client, &grid, take).await?,
        Command::Release { addresses } => {
            for address in addresses {
                let step = session.out.step(format!("releasing {address}"));
                client.address_release(&grid, address, None).await?;
                step.done();
            }
            session.out.empty();
        }
        Command::History { address, at } => {
            let all = history(&client, &grid, address, at).await?;
            session.out.list(&all, tables::history);
        }
    }
    Ok(())
}

/// All pages of a list.
async fn list(
    client: &Client,
    grid: &str,
    mut filter: AddressFilter,
) -> Result<Addresses, kontena::Error> {
    let mut all = client.address_list(grid, &filter).await?;
    while let Some(after) = all.next {
        filter.after = Some(after);
        let page = client.address_list(grid, &filter).await?;
        all.addresses.extend(page.addresses);
        all.next = page.next;
    }
    Ok(all)
}

/// All pages of a history.
async fn history(
    client: &Client,
    grid: &str,
    address: Ipv4Addr,
    at: Option<String>,
) -> Result<History, kontena::Error> {
    let mut filter = HistoryFilter {
        at,
        before: None,
        limit: Some(PAGE_MAX),
    };
    let mut all = client.address_history(grid, address, &filter).await?;
    while let Some(before) = all.next {
        filter.before = Some(before);
        let page = client.address_history(grid, address, &filter).await?;
        all.history.extend(page.history);
        all.next = page.next;
    }
    Ok(all)
}

async fn reserve(
    session: &Session,
    client: &Client,
    grid: &str,
    take: Reserve,
) -> Result<(), Failure> {
    let what = match (take.address, take.count.unwrap_or(1)) {
        (Some(address), _) => address.to_string(),
        (None, 1) => "an address".to_owned(),
        (None, count) => format!("{count} addresses"),
    };
    let step = session
        .out
        .step(format!("reserving {what} for {}", take.name));
    let body = AddressTake {
        name: take.name,
        count: take.count,
        address: take.address,
    };
    let taken = client.address_take(grid, &body).await?;
    step.done();
    for held in &taken.addresses {
        session.out.line(&format!("  {}", held.address));
    }
    session.out.changed(&taken);
    Ok(())
}
