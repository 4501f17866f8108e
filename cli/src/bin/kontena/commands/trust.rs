//! `kontena grid trusted-subnet`.

use clap::Subcommand;
use ipnetwork::Ipv4Network;
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
    for line in covered(&trust, &body) {
        session.out.line(&line);
    }
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

/// Where what was asked for changes less than it seems, since another trusted network
/// holds it or lies in it; a line each.
fn covered(trust: &Trust, asked: &TrustChange) -> Vec<String> {
    let others = |text: &String| {
        let asked: Ipv4Network = text.parse().ok()?;
        let others = trust.trusted_subnets.iter().copied();
        Some((asked, others.filter(move |other| *other != asked)))
    };
    let removed = asked.remove.iter().filter_map(others);
    let removed = removed.flat_map(|(asked, others)| {
        others.filter_map(move |other| {
            if asked.is_subnet_of(other) {
                Some(format!("{asked} stays trusted: it lies in {other}"))
            } else if other.is_subnet_of(asked) {
                Some(format!("{other}, which lies in {asked}, stays trusted"))
            } else {
                None
            }
        })
    });
    let added = asked.add.iter().filter_map(others);
    let added = added.filter_map(|(asked, mut others)| {
        let around = others.find(|other| asked.is_subnet_of(*other))?;
        Some(format!("{asked} adds nothing: it lies in {around}"))
    });
    removed.chain(added).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_less_than_it_seems_is_told() {
        let subnets = ["10.0.0.0/8", "10.1.0.0/16", "192.168.1.0/24"];
        let trust = Trust {
            trusted_subnets: subnets.map(|text| text.parse().unwrap()).into(),
            fast_pairs: 0,
            sealed_pairs: 0,
            unknown_pairs: 0,
            to_fast: 0,
            to_sealed: 0,
        };
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let asked = TrustChange {
            add: texts(&["10.1.0.0/16", "192.168.1.0/24"]),
            remove: texts(&["10.2.0.0/16", "192.168.0.0/16"]),
            dry_run: false,
        };
        let told = [
            "10.2.0.0/16 stays trusted: it lies in 10.0.0.0/8",
            "192.168.1.0/24, which lies in 192.168.0.0/16, stays trusted",
            "10.1.0.0/16 adds nothing: it lies in 10.0.0.0/8",
        ];
        assert_eq!(covered(&trust, &asked), told);
    }
}
