//! The names of a grid as this node knows them: immutable, rebuilt on every change,
//! and shared as an `Arc`.
//!
//! Endpoints of other nodes come from the directory; those of this node from the
//! containers observed running, so that one that starts or dies here shows at once,
//! even while the Master is away.
//!
//! An agent that has just started knows what was on disk, but not yet what runs here
//! ([`super::startup`]). Its zone is incomplete: what it has is served, and nothing is denied.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use kontena_schema::agent::{Endpoint, Placement};
use kontena_schema::name::{ZONE, instance_names, service_names};

use crate::directory::Directory;

/// An instance of this host whose names resolve.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Local {
    stack: Option<String>,
    service: String,
    instance: u32,
    address: Ipv4Addr,
}

impl Local {
    /// The names of a placement; none without an address.
    pub fn of(placement: &Placement) -> Option<Self> {
        Some(Self {
            stack: placement.stack.clone(),
            service: placement.service.clone(),
            instance: placement.instance,
            address: placement.address?,
        })
    }
}

/// The names of a grid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// Lower case, without the trailing dot. A name without addresses exists as the
    /// parent of others.
    names: HashMap<String, Vec<Ipv4Addr>>,
    reverse: HashMap<Ipv4Addr, String>,
    /// The addresses whose reverse names are answered here.
    addresses: Option<Ipv4Network>,
    serial: u32,
    complete: bool,
}

impl Zone {
    /// The names of a directory, with those of this host as observed.
    pub fn build<'a>(directory: &Directory, local: impl IntoIterator<Item = &'a Local>) -> Self {
        let mut zone = Self::default();
        let Some(grid) = &directory.grid else {
            return zone;
        };
        let me = directory.me.as_ref().map(|me| me.node);
        zone.complete = true;
        zone.addresses = Some(grid.supernet);
        zone.serial = u32::try_from(directory.revision().0 & 0xffff_ffff).unwrap_or_default();
        zone.names.insert(ZONE.to_owned(), Vec::new());
        zone.names
            .insert(format!("{}.{ZONE}", grid.name), Vec::new());
        let elsewhere = |e: &&Endpoint| e.ready && Some(e.node) != me;
        for e in directory.endpoints.values().filter(elsewhere) {
            zone.add(
                &grid.name,
                e.stack.as_deref(),
                &e.service,
                e.instance,
                e.address,
            );
        }
        for l in local {
            zone.add(
                &grid.name,
                l.stack.as_deref(),
                &l.service,
                l.instance,
                l.address,
            );
        }
        zone
    }

    /// The same, while there may be more names.
    pub fn incomplete(self) -> Self {
        Self {
            complete: false,
            ..self
        }
    }

    fn add(
        &mut self,
        grid: &str,
        stack: Option<&str>,
        service: &str,
        instance: u32,
        address: Ipv4Addr,
    ) {
        if let Some(stack) = stack {
            self.names
                .entry(format!("{stack}.{grid}.{ZONE}"))
                .or_default();
        }
        let instances = instance_names(grid, stack, service, instance);
        self.reverse.insert(address, instances[0].clone());
        for name in service_names(grid, stack, service)
            .into_iter()
            .chain(instances)
        {
            self.names.entry(name).or_default().push(address);
        }
    }

    /// Whether a name missing here does not exist.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The addresses of a name in lower case; none if there is no such name.
    pub fn addresses(&self, name: &str) -> Option<&[Ipv4Addr]> {
        self.names.get(name).map(Vec::as_slice)
    }

    /// The instance name of an address.
    pub fn name(&self, address: Ipv4Addr) -> Option<&str> {
        self.reverse.get(&address).map(String::as_str)
    }

    /// Whether the reverse name of an address is answered here.
    pub fn has_reverse(&self, address: Ipv4Addr) -> bool {
        self.addresses
            .is_some_and(|network| network.contains(address))
    }

    /// The version of the zone.
    pub fn serial(&self) -> u32 {
        self.serial
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::tests::{directory, endpoint, placement};

    fn address(last: u8) -> Ipv4Addr {
        [10, 81, 1, last].into()
    }

    #[test]
    fn own_names_follow_what_runs_and_others_the_directory() {
        let mut directory = directory();
        let unready = endpoint(13, 2, 3, false);
        directory.endpoints.insert(unready.placement, unready);
        let service = "testapp-web.demo.kontena.local";

        // The Master still calls 11 ready, but it does not run here.
        let zone = Zone::build(&directory, []);
        assert_eq!(zone.addresses(service), Some(&[address(2)][..]));

        let local = Local::of(&placement(11, 1)).unwrap();
        let zone = Zone::build(&directory, [&local]);
        assert_eq!(zone.addresses(service).unwrap().len(), 2);
        for name in [
            "testapp-web-1.demo.kontena.local",
            "testapp-web-1.kontena.local",
            "web-1.testapp.demo.kontena.local",
        ] {
            assert_eq!(zone.addresses(name), Some(&[address(1)][..]), "{name}");
        }
        assert_eq!(zone.addresses("testapp-web-3.kontena.local"), None);
        assert_eq!(zone.addresses("testapp.demo.kontena.local"), Some(&[][..]));
        assert_eq!(
            zone.name(address(2)),
            Some("testapp-web-2.demo.kontena.local")
        );
    }

    #[test]
    fn a_zone_is_complete_with_a_directory_and_what_runs_here() {
        assert!(!Zone::build(&Directory::default(), []).is_complete());
        assert!(!Zone::build(&directory(), []).incomplete().is_complete());
        assert!(Zone::build(&directory(), []).is_complete());
    }
}
