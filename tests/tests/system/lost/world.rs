//! The grid in which a host will be lost, and what is asked of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use kontena::client::HistoryFilter;
use kontena_schema::agent::InstanceState;
use kontena_schema::http::addresses::{AddressTake, LeaseEvent, LedgerEntry};
use kontena_schema::http::containers::Container;
use kontena_schema::http::grids::GridCreate;
use kontena_schema::http::services::ServiceCreate;
use kontena_schema::ids::LeaseNumber;
use kontena_schema::mac::Mac;
use kontena_tests::{Grid, Host, OwnGrid, Settings, TOOLBOX_PORT, service, toolbox, until};

/// Seconds between the end of a node's session and its loss.
pub(super) const GRACE_S: u32 = 1;
/// A container that is made anew.
const MADE_WITHIN: Duration = Duration::from_secs(20);
/// What agents that are connected know within moments.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);

/// The grid at the beginning: a toolbox on the first two hosts, two guests on the
/// third, every other address reserved.
pub(super) struct World {
    pub(super) own: OwnGrid,
    /// The two guests, whose host will be lost.
    pub(super) guests: [Container; 2],
    /// The toolboxes, which nothing may disturb.
    pub(super) toolboxes: Vec<Container>,
    /// Reserved, so that nothing is free.
    pub(super) fillers: Vec<Ipv4Addr>,
}

/// A service whose containers tell each other apart to whoever connects.
fn teller(name: &str, node: &str) -> ServiceCreate {
    let tell = format!("exec socat TCP-LISTEN:{TOOLBOX_PORT},fork,reuseaddr SYSTEM:hostname");
    let mut service = service(name, &tell);
    service.spec.affinity = vec![format!("node=={node}")];
    service
}

impl World {
    pub(super) async fn begin() -> Self {
        let create = GridCreate {
            name: "lost".to_owned(),
            subnet: Some("10.81.0.0/23".to_owned()),
            trusted_subnets: Some(vec![Settings::read().wan.to_string()]),
            grace_s: Some(GRACE_S),
            ..GridCreate::default()
        };
        let own = OwnGrid::make(create, &["lost-1", "lost-2", "lost-3"]).await;
        let grid = &own.grid;
        let mut toolbox = toolbox();
        toolbox.spec.affinity = vec!["node!=lost-3".to_owned()];
        grid.service_make(&toolbox).await;
        let mut guest = teller("guest", "lost-3");
        guest.instances = Some(2);
        grid.service_make(&guest).await;
        let toolboxes = grid.running(None, "toolbox", 2).await;
        let guests = grid.running(None, "guest", 2).await;
        let guests: [Container; 2] = guests.try_into().unwrap();
        let fillers = fill(grid).await;
        let world = Self {
            own,
            guests,
            toolboxes,
            fillers,
        };
        assert!(world.address(0) < world.address(1), "{:#?}", world.guests);
        world
            .reached_by_all(world.address(0), &world.guests[0])
            .await;
        world.names_are(&world.names(&world.guests)).await;
        world
    }

    pub(super) fn grid(&self) -> &Grid {
        &self.own.grid
    }

    pub(super) fn host(&self, number: usize) -> &Host {
        &self.own.grid.hosts[number - 1]
    }

    /// The hosts that stay connected.
    pub(super) fn connected(&self) -> &[Host] {
        &self.own.grid.hosts[..2]
    }

    pub(super) fn address(&self, guest: usize) -> Ipv4Addr {
        self.guests[guest].ip_address.unwrap()
    }

    /// What the names of services are to answer; the toolboxes' are as ever.
    pub(super) fn names(&self, of: &[Container]) -> BTreeMap<String, BTreeSet<Ipv4Addr>> {
        let mut names = BTreeMap::new();
        for service in ["guest", "heir", "toolbox"] {
            names.insert(format!("{service}.lost.kontena.local"), BTreeSet::new());
        }
        for container in of.iter().chain(&self.toolboxes) {
            let (service, n) = (&container.service, container.instance_number);
            for name in [service.clone(), format!("{service}-{n}")] {
                let all: &mut BTreeSet<_> = names
                    .entry(format!("{name}.lost.kontena.local"))
                    .or_default();
                all.insert(container.ip_address.unwrap());
            }
        }
        names
    }

    /// Waits until these names answer this on every host that is connected.
    pub(super) async fn names_are(&self, names: &BTreeMap<String, BTreeSet<Ipv4Addr>>) {
        let nodes = self.grid().client.node_list("lost").await.unwrap().nodes;
        for node in nodes.into_iter().filter(|node| node.connected) {
            let host = self.grid().host(&node.name);
            let place = self.place(host).await;
            let script: String = names
                .keys()
                .map(|name| format!("echo {name} $(dig +short +tries=1 +time=3 {name})\n"))
                .collect();
            let what = format!("{} answers as it is to", host.name);
            until(KNOWN_WITHIN, &what, async || {
                let answers = host.inside(&place, &script).await.ok()?;
                let found: BTreeMap<_, _> = answers.lines().map(parse).collect();
                if found == *names {
                    Ok(())
                } else {
                    Err(format!("{answers}\nexpected: {names:#?}"))
                }
            })
            .await;
        }
    }

    /// A container of a host in which there are tools.
    pub(super) async fn place(&self, host: &Host) -> String {
        let containers = self.grid().containers(None).await;
        let on_it = |c: &&Container| {
            c.node.as_deref() == Some(&host.name) && c.state == InstanceState::Running
        };
        containers.iter().find(on_it).unwrap().name.clone()
    }

    /// Waits until whoever connects to `what` from the toolboxes speaks to this
    /// container, wherever it may be.
    pub(super) async fn reached_by_all(&self, what: impl std::fmt::Display, container: &Container) {
        let to = self.grid().host(container.node.as_deref().unwrap());
        let told = to.inside(&container.name, "hostname").await.must();
        for toolbox in &self.toolboxes {
            let host = self.grid().host(toolbox.node.as_deref().unwrap());
            let ask = format!("nc -d -w 3 {what} {TOOLBOX_PORT}");
            let goal = format!("{what} is {} on {}", container.name, host.name);
            until(KNOWN_WITHIN, &goal, async || {
                let found = host.inside(&toolbox.name, &ask).await.ok()?;
                if found == told { Ok(()) } else { Err(found) }
            })
            .await;
        }
    }

    /// Waits until an address is free again.
    pub(super) async fn freed(&self, address: Ipv4Addr, within: Duration) {
        until(within, &format!("{address} is free"), async || {
            let shown = self.grid().client.address_show("lost", address).await;
            let shown = shown.map_err(|err| err.to_string())?;
            match shown.kind {
                None => Ok(()),
                Some(_) => Err(format!("{shown:?}")),
            }
        })
        .await;
    }

    /// The states of the guests' leases, as the Master lists them.
    pub(super) async fn lease_states(&self) -> Vec<String> {
        let guests = self.grid().containers(Some((None, "guest"))).await;
        for guest in &guests {
            assert_eq!(guest.ip_address.is_some(), guest.lease_state == "held");
        }
        guests.into_iter().map(|guest| guest.lease_state).collect()
    }

    /// Makes a service on the second host, which gets what is free.
    pub(super) async fn heir(&self) -> Container {
        self.grid().service_make(&teller("heir", "lost-2")).await;
        self.grid().running(None, "heir", 1).await.remove(0)
    }

    /// Gives back reserved addresses, so that somebody who moves finds one.
    pub(super) async fn make_room(&self, count: usize) -> BTreeSet<Ipv4Addr> {
        let room: BTreeSet<_> = self.fillers[..count].iter().copied().collect();
        for address in &room {
            let released = self.grid().client.address_release("lost", *address, None);
            released.await.unwrap();
        }
        room
    }

    /// Waits until every container of the grid runs and holds an address, and
    /// answers guests and heir.
    pub(super) async fn settled(&self, heir_before: &Container) -> (Vec<Container>, Container) {
        let settled = until(
            MADE_WITHIN,
            "everything runs and holds an address",
            async || {
                let all = self.grid().containers(None).await;
                let holds = |c: &Container| {
                    c.state == InstanceState::Running
                        && c.lease_state == "held"
                        && c.error.is_none()
                };
                // The old container is reported until the new one is.
                let new = |c: &Container| {
                    c.id != heir_before.id || c.container_id != heir_before.container_id
                };
                if all.iter().all(|c| holds(c) && new(c)) {
                    Ok(all)
                } else {
                    Err(format!("{all:#?}"))
                }
            },
        );
        let (mut guests, mut heirs) = (Vec::new(), Vec::new());
        for container in settled.await {
            match container.service.as_str() {
                "guest" => guests.push(container),
                "heir" => heirs.push(container),
                _ => (),
            }
        }
        assert_eq!(heirs.len(), 1, "{heirs:#?}");
        (guests, heirs.remove(0))
    }

    /// The life of an address, its beginning first: step, holder and reason.
    pub(super) async fn history(&self, address: Ipv4Addr) -> Vec<(LeaseEvent, String, String)> {
        let all = HistoryFilter::default();
        let history = self.grid().client.address_history("lost", address, &all);
        let mut steps = history.await.unwrap().history;
        steps.reverse();
        assert!(steps.is_sorted_by_key(|step| step.revision), "{steps:#?}");
        let of = |step: LedgerEntry| (step.event, step.holder, step.reason);
        steps.into_iter().map(of).collect()
    }

    pub(super) async fn toolboxes_are_undisturbed(&self) {
        let now = self.grid().containers(Some((None, "toolbox"))).await;
        assert_eq!(now, self.toolboxes);
    }
}

/// Reserves all that is free, as much as the refusal says that there is.
async fn fill(grid: &Grid) -> Vec<Ipv4Addr> {
    let mut take = AddressTake {
        name: "filler".to_owned(),
        count: Some(8190),
        address: None,
    };
    let refused = grid.client.address_take("lost", &take).await.unwrap_err();
    assert_eq!(refused.code(), Some("grid_full_addresses"), "{refused}");
    let usage = refused.address_usage().unwrap();
    assert_eq!((usage.size, usage.nodes, usage.leased), (510, 3, 4));
    take.count = u32::try_from(usage.size - usage.nodes - usage.leased).ok();
    let taken = grid.client.address_take("lost", &take).await.unwrap();
    taken
        .addresses
        .into_iter()
        .map(|held| held.address)
        .collect()
}

fn parse(line: &str) -> (String, BTreeSet<Ipv4Addr>) {
    let mut words = line.split(' ');
    let name = words.next().unwrap_or_default().to_owned();
    (name, words.map(|word| word.parse().unwrap()).collect())
}

pub(super) fn mac(container: &Container) -> Mac {
    Mac::of_lease(
        container.ip_address.unwrap(),
        LeaseNumber(container.lease.unwrap()),
    )
}

/// Docker's word on a container: which it is and since when it runs.
pub(super) async fn identity(host: &Host, container: &Container) -> String {
    let format = "{{.Id}} {{.State.StartedAt}} {{.State.Pid}} {{.RestartCount}}";
    let inspect = format!("docker inspect --format '{format}' {}", container.name);
    host.run(&inspect).await.must()
}

pub(super) fn steps<const N: usize>(
    steps: [(LeaseEvent, &str, &str); N],
) -> Vec<(LeaseEvent, String, String)> {
    let owned = |(event, holder, reason): (LeaseEvent, &str, &str)| {
        (event, holder.to_owned(), reason.to_owned())
    };
    steps.into_iter().map(owned).collect()
}
