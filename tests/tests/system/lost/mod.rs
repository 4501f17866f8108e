//! A host that the Master loses: cut off from it but not from its peers, and dead.
//! Its addresses are released and taken by others; then it returns.
//! `infra/adr/0004-leases.md` says who moves. Grid and hosts are the test's own, and
//! each test runs alone.

mod world;

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kontena_schema::http::addresses::{AddressTake, LeaseEvent};
use kontena_schema::http::containers::Container;
use kontena_tests::{Capture, Host, TOOLBOX_PORT};

use world::{GRACE_S, World, identity, mac, steps};

/// A session is over when nothing was heard of its agent for so long.
const DEAD: Duration = Duration::from_secs(9);
/// How long after the loss a name may still be answered.
const NAMES: Duration = Duration::from_millis(250);
/// What two processors with hosts on them may add to a bound.
const SCHEDULING: Duration = Duration::from_secs(1);

/// Where the bound is another test's business.
const LOST_WITHIN: Duration = Duration::from_secs(20);

/// Why a placement lost its address, and why it has it again.
const NODE_LOST: &str = "node lost";
const NODE_RETURNED: &str = "the node returned";

/// From a host's last word to the last wrong answer of a name.
fn bound() -> Duration {
    DEAD + Duration::from_secs(GRACE_S.into()) + NAMES + SCHEDULING
}

/// The frames of a container while another has its address.
struct Overlap {
    /// On the connected hosts: what comes out of the tunnel, and what gets further.
    arrived: Vec<Capture>,
    admitted: Vec<Capture>,
    /// On its own host: what comes for it through the tunnel, and to itself.
    answers: Vec<Capture>,
}

impl Overlap {
    async fn begin(world: &World, guest: &Container) -> Self {
        let (from, to) = (
            format!("ether src {}", mac(guest)),
            format!("ether dst {}", mac(guest)),
        );
        let (mut arrived, mut admitted) = (Vec::new(), Vec::new());
        for host in world.connected() {
            arrived.push(Capture::begin(host, "overlap", "kontena-vx", &from).await);
            admitted.push(Capture::begin(host, "overlap", "kontena", &from).await);
        }
        let host = world.host(3);
        // Its own host tells it who has which address, as long as it knows.
        let to_itself = format!("ip and dst host {}", guest.ip_address.unwrap());
        let end = host_end(host, guest).await;
        let answers = vec![
            Capture::begin(host, "overlap", "kontena-vx", &to).await,
            Capture::begin(host, "overlap", &end, &to_itself).await,
        ];
        Self {
            arrived,
            admitted,
            answers,
        }
    }

    /// Its frames came to every connected host, got no further, and nothing came
    /// back.
    async fn nobody_answered(self) {
        for capture in self.arrived {
            let frames = capture.end().await;
            assert!(!frames.is_empty(), "the mesh is cut too");
        }
        for capture in self.admitted.into_iter().chain(self.answers) {
            let frames = capture.end().await;
            assert!(frames.is_empty(), "{frames:#?}");
        }
    }
}

/// The host's end of a container's interface.
async fn host_end(host: &Host, container: &Container) -> String {
    let peer = "ip -o link show dev ethwe | grep -oP '^[0-9]+: ethwe@if\\K[0-9]+'";
    let index = host.beside(&container.name, peer).await.must();
    let name = format!("ip -o link | grep -oP '^{index}: \\K[^@:]+'");
    host.run(&name).await.must()
}

/// A container that lost its address goes on as before, and tells everybody that
/// it has it, which comes no further than its host; prints what answers.
async fn insist(world: &World, guest: &Container) -> String {
    let (own, address) = (mac(guest), guest.ip_address.unwrap());
    let nodes = world.grid().client.node_list("lost").await.unwrap().nodes;
    let connected = nodes.iter().filter(|node| node.connected);
    let mut peers: Vec<(String, Ipv4Addr)> = connected
        .map(|node| {
            let mac = kontena_schema::mac::Mac::of_node(node.overlay_ip);
            (mac.to_string(), node.overlay_ip)
        })
        .collect();
    for toolbox in &world.toolboxes {
        peers.push((mac(toolbox).to_string(), toolbox.ip_address.unwrap()));
    }
    let arp = format!(
        r#"
import socket, struct
ip, mac = socket.inet_aton, lambda text: bytes.fromhex(text.replace(":", ""))
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("ethwe", 0))
everybody = "ff:ff:ff:ff:ff:ff"
for peer, address in {peers:?}:
    for to in everybody, peer:
        for kind in 1, 2:
            for about in address, "{address}", "10.81.0.200":
                s.send(mac(to) + mac("{own}") + struct.pack("!HHHBBH", 0x806, 1, 0x800, 6, 4, kind)
                    + mac("{own}") + ip("{address}") + mac(to if kind == 2 else "00:00:00:00:00:00") + ip(about))
"#,
        peers = peers
            .iter()
            .map(|(mac, ip)| (mac.as_str(), ip.to_string()))
            .collect::<Vec<_>>(),
    );
    let tries: String = peers
        .iter()
        .map(|(_, peer)| {
            format!(
                "(ping -q -c 10 -i 0.2 -W 1 {peer} >/dev/null && echo {peer} answers a ping) &\n\
                 (nc -z -w 3 {peer} {TOOLBOX_PORT} && echo {peer} lets connect) &\n"
            )
        })
        .collect();
    let script = format!("python3 -c '{arp}' || echo no ARP was sent\n{tries}wait");
    world.host(3).inside(&guest.name, &script).await.must()
}

/// The address of the guest that insists is the heir's by now: no peer is misled.
async fn heir_is_undisturbed(world: &World, heir: &Container) {
    let address = heir.ip_address.unwrap();
    for _ in 0..3 {
        world.reached_by_all(address, heir).await;
        world.reached_by_all("heir.lost.kontena.local", heir).await;
    }
    for toolbox in &world.toolboxes {
        let peer = toolbox.ip_address.unwrap();
        let ping = format!("ping -q -c 3 -i 0.2 -W 1 {peer}");
        world.host(2).inside(&heir.name, &ping).await.must();
    }
}

#[tokio::test]
async fn a_host_that_is_cut_off_returns_as_it_was_and_the_other_side_moves_alone() {
    let world = World::begin().await;
    let cut = world.host(3);
    let [first, second] = &world.guests;
    let (contested, left) = (world.address(0), world.address(1));
    let before = [identity(cut, first).await, identity(cut, second).await];

    cut.cut_off().await;
    world.freed(contested, LOST_WITHIN).await;
    world.names_are(&world.names(&[])).await;
    assert_eq!(world.lease_states().await, ["lost", "lost"]);
    // It is not cut off from the mesh: as long as nobody else has the address.
    world.reached_by_all(contested, first).await;

    let heir = world.heir().await;
    assert_eq!(heir.ip_address, Some(contested));
    assert_eq!(world.lease_states().await, ["taken", "lost"]);
    world
        .names_are(&world.names(std::slice::from_ref(&heir)))
        .await;
    world.reached_by_all(contested, &heir).await;
    let overlap = Overlap::begin(&world, first).await;
    let (answered, ()) = tokio::join!(insist(&world, first), heir_is_undisturbed(&world, &heir));
    assert_eq!(answered, "");
    overlap.nobody_answered().await;
    world.reached_by_all(left, second).await;
    let unchanged = [identity(cut, first).await, identity(cut, second).await];
    assert_eq!(unchanged, before);

    let room = world.make_room(1).await;
    cut.reconnect().await;
    world.grid().node_online(&cut.name).await;
    let (guests, moved) = world.settled(&heir).await;
    assert_eq!(guests, world.guests);
    assert_eq!(
        [identity(cut, first).await, identity(cut, second).await],
        before
    );
    assert!(room.contains(&moved.ip_address.unwrap()), "{moved:#?}");
    assert_eq!(moved.node, heir.node);
    assert_ne!(moved.container_id, heir.container_id);
    world.toolboxes_are_undisturbed().await;
    world
        .names_are(&world.names(&[guests, vec![moved.clone()]].concat()))
        .await;
    world
        .reached_by_all("guest-1.lost.kontena.local", first)
        .await;
    world.reached_by_all(contested, first).await;
    world.reached_by_all(left, second).await;
    world
        .reached_by_all("heir.lost.kontena.local", &moved)
        .await;
    told_why(&world, contested, left, moved.ip_address.unwrap()).await;
    world.own.end().await;
}

/// What the ledger has of the contested address, of the one that nobody took and
/// of the one to which the heir moved.
async fn told_why(world: &World, contested: Ipv4Addr, left: Ipv4Addr, other: Ipv4Addr) {
    use LeaseEvent::{Leased, Released, Restored};
    let returned = format!("{contested} returned to guest-1 of node lost-3");
    assert_eq!(
        world.history(contested).await,
        steps([
            (Leased, "guest-1", "deployed"),
            (Released, "guest-1", NODE_LOST),
            (Leased, "heir-1", "deployed"),
            (Released, "heir-1", &returned),
            (Restored, "guest-1", NODE_RETURNED),
        ])
    );
    assert_eq!(
        world.history(left).await,
        steps([
            (Leased, "guest-2", "deployed"),
            (Released, "guest-2", NODE_LOST),
            (Restored, "guest-2", NODE_RETURNED),
        ])
    );
    assert_eq!(
        world.history(other).await,
        steps([
            (Leased, "filler", "reserved"),
            (Released, "filler", "released by its holder"),
            (Leased, "heir-1", &returned),
        ])
    );
}

/// Asks a name in a toolbox until nothing answers; when that was, since the epoch.
async fn gone_at(host: &Host, toolbox: &str, name: &str) -> Duration {
    let ask = format!(
        "end=$((SECONDS + 60)); while [[ $(dig +short +tries=1 +time=1 {name}) ]]; do \
         ((SECONDS < end)) || exit 1; sleep 0.02; done; date +%s%3N"
    );
    let at = host.inside(toolbox, &ask).await.must();
    Duration::from_millis(at.parse().unwrap())
}

#[tokio::test]
async fn a_host_that_dies_leaves_its_addresses_to_others_and_may_return() {
    let world = World::begin().await;
    let dead = world.host(3);
    let [first, second] = &world.guests;
    let [a, b] = &world.toolboxes[..] else {
        panic!("two toolboxes");
    };
    let (for_reservation, for_heir) = (world.address(0), world.address(1));

    dead.is_heard().await;
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    dead.power_off().await;
    let name = "guest.lost.kontena.local";
    let traffic = format!("ping -q -c 60 -i 0.2 -W 2 {}", b.ip_address.unwrap());
    let (on_a, on_b, undisturbed) = tokio::join!(
        gone_at(world.host(1), &a.name, name),
        gone_at(world.host(2), &b.name, name),
        world.host(1).inside(&a.name, &traffic),
    );
    for gone in [on_a, on_b] {
        let after = gone - begun;
        println!("the names are gone after {after:?}");
        assert!(after <= bound(), "the names are gone after {after:?}");
    }
    let undisturbed = undisturbed.must();
    assert!(undisturbed.contains(" 0% packet loss"), "{undisturbed}");
    world.names_are(&world.names(&[])).await;
    world.freed(for_reservation, Duration::ZERO).await;
    world.freed(for_heir, Duration::ZERO).await;
    assert_eq!(world.lease_states().await, ["lost", "lost"]);

    let take = AddressTake {
        name: "printer".to_owned(),
        ..AddressTake::default()
    };
    let taken = world.grid().client.address_take("lost", &take).await;
    assert_eq!(taken.unwrap().addresses[0].address, for_reservation);
    let heir = world.heir().await;
    assert_eq!(heir.ip_address, Some(for_heir));
    assert_eq!(world.lease_states().await, ["taken", "taken"]);
    heir_is_undisturbed(&world, &heir).await;
    world.toolboxes_are_undisturbed().await;
    world
        .names_are(&world.names(std::slice::from_ref(&heir)))
        .await;

    let room = world.make_room(2).await;
    dead.start().await;
    world.grid().node_online(&dead.name).await;
    let (guests, moved) = world.settled(&heir).await;
    let [now_first, now_second] = &guests[..] else {
        panic!("{guests:#?}");
    };
    // A reservation stays; of two instances the one that came first does, since
    // its container is still there.
    assert_ne!(now_first.container_id, first.container_id);
    assert_eq!(now_second, second);
    let addresses = [now_first, &moved].map(|c| c.ip_address.unwrap());
    assert_eq!(room, addresses.into());
    world.toolboxes_are_undisturbed().await;
    let all = [guests.clone(), vec![moved.clone()]].concat();
    world.names_are(&world.names(&all)).await;
    for container in &all {
        world
            .reached_by_all(container.ip_address.unwrap(), container)
            .await;
    }
    reservation_stays(&world, for_reservation, addresses[0]).await;
    world.own.end().await;
}

/// What the ledger has of the reserved address, and of the one that its former
/// holder got.
async fn reservation_stays(world: &World, reserved: Ipv4Addr, other: Ipv4Addr) {
    use LeaseEvent::{Leased, Released};
    let given = format!("{reserved} was given to printer while the node was lost");
    assert_eq!(
        world.history(reserved).await,
        steps([
            (Leased, "guest-1", "deployed"),
            (Released, "guest-1", NODE_LOST),
            (Leased, "printer", "reserved"),
        ])
    );
    assert_eq!(
        world.history(other).await,
        steps([
            (Leased, "filler", "reserved"),
            (Released, "filler", "released by its holder"),
            (Leased, "guest-1", &given),
        ])
    );
}
