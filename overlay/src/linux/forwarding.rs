//! One rule among Docker's own: frames from overlay port to overlay port pass.
//!
//! With `br_netfilter` the kernel sends bridged packets through the FORWARD
//! chain, which Docker closes when it switches forwarding on. A table of ours
//! cannot allow what another table drops, so the rule goes where Docker's are:
//! into the implementation of iptables that holds its chains, into DOCKER-USER
//! where that exists. A restarting engine may drop it; each pass checks.
//!
//! There is no rule against masquerading: Docker rewrites only what comes from
//! its own bridges' subnets, and overlay sources are not in them.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use crate::error::Cause;
use crate::model::devices::BRIDGE;
use crate::model::state::{Chain, ForwardPlace, Forwarding, Variant};
use crate::sys::program::run_ok;

/// Seconds to wait for the lock that Docker takes too.
const LOCK_WAIT: &str = "5";

/// Reads where our rule is and where it belongs.
pub(crate) async fn observe() -> Result<Forwarding, Cause> {
    let mut listings = BTreeMap::new();
    for variant in [Variant::Nft, Variant::Legacy] {
        // Listing the old implementation's table would create it.
        if variant == Variant::Nft || legacy_is_used()? {
            let stdout = run_ok(variant.program(), &["-w", LOCK_WAIT, "-S"], &[]).await?;
            listings.insert(variant, String::from_utf8_lossy(&stdout).into_owned());
        }
    }
    Ok(parse(&listings))
}

/// Whether all of it is among what the kernel numbers the generations of.
pub(crate) fn is_counted() -> bool {
    matches!(legacy_is_used(), Ok(false))
}

/// Inserts our rule at the head of a chain.
pub(crate) async fn allow(place: ForwardPlace) -> Result<(), Cause> {
    change("-I", place).await
}

/// Removes our rule from a chain.
pub(crate) async fn forget(place: ForwardPlace) -> Result<(), Cause> {
    change("-D", place).await
}

async fn change(what: &str, place: ForwardPlace) -> Result<(), Cause> {
    let mut args = vec!["-w", LOCK_WAIT, what, place.chain.name()];
    args.extend(RULE);
    run_ok(place.variant.program(), &args, &[]).await.map(drop)
}

const RULE: [&str; 6] = ["-i", BRIDGE, "-o", BRIDGE, "-j", "ACCEPT"];

fn legacy_is_used() -> Result<bool, Cause> {
    let path = "/proc/thread-self/net/ip_tables_names";
    match std::fs::read_to_string(path) {
        Ok(names) => Ok(names.lines().any(|name| name == "filter")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Cause::Io {
            what: path.to_owned(),
            error,
        }),
    }
}

fn parse(listings: &BTreeMap<Variant, String>) -> Forwarding {
    let has_chain = |listing: &str, chain: &str| {
        listing
            .lines()
            .any(|line| line.strip_prefix("-N ").is_some_and(|name| name == chain))
    };
    let is_dockers = |variant: &Variant| {
        let listing = listings.get(variant);
        listing.is_some_and(|l| has_chain(l, "DOCKER") || has_chain(l, "DOCKER-USER"))
    };
    let variants = [Variant::Nft, Variant::Legacy];
    let variant = variants
        .into_iter()
        .find(is_dockers)
        .unwrap_or(Variant::Nft);
    let docker_user = listings
        .get(&variant)
        .is_some_and(|l| has_chain(l, "DOCKER-USER"));
    let chain = if docker_user {
        Chain::DockerUser
    } else {
        Chain::Forward
    };

    let mut present = BTreeMap::new();
    for (&variant, listing) in listings {
        for chain in [Chain::Forward, Chain::DockerUser] {
            let rule = format!("-A {} {}", chain.name(), RULE.join(" "));
            let count = listing.lines().filter(|line| *line == rule).count();
            if count > 0 {
                present.insert(ForwardPlace { variant, chain }, count);
            }
        }
    }
    Forwarding {
        place: ForwardPlace { variant, chain },
        present,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "-A DOCKER-USER -i kontena -o kontena -j ACCEPT\n";
    const DOCKERS: &str = "-P FORWARD DROP\n-N DOCKER\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n";

    fn place(variant: Variant, chain: Chain) -> ForwardPlace {
        ForwardPlace { variant, chain }
    }

    fn parsed(listings: &[(Variant, String)]) -> Forwarding {
        parse(&listings.iter().cloned().collect())
    }

    #[test]
    fn the_rule_belongs_where_dockers_chains_are() {
        let plain = "-P FORWARD ACCEPT\n".to_owned();
        let found = parsed(&[(Variant::Nft, plain.clone())]);
        assert_eq!(found.place, place(Variant::Nft, Chain::Forward));
        let found = parsed(&[
            (Variant::Nft, plain.clone()),
            (Variant::Legacy, DOCKERS.to_owned()),
        ]);
        assert_eq!(found.place, place(Variant::Legacy, Chain::DockerUser));
        let old = "-N DOCKER\n".to_owned();
        let found = parsed(&[(Variant::Nft, plain), (Variant::Legacy, old)]);
        assert_eq!(found.place, place(Variant::Legacy, Chain::Forward));
    }

    #[test]
    fn our_rule_is_counted_wherever_it_is() {
        let found = parsed(&[(
            Variant::Nft,
            format!("{DOCKERS}{OURS}{OURS}-A DOCKER-USER -j RETURN\n"),
        )]);
        let docker_user = place(Variant::Nft, Chain::DockerUser);
        assert_eq!(found.present, BTreeMap::from([(docker_user, 2)]));
    }
}
