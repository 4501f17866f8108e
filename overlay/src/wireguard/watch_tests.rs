//! Looks at a device, one after the other.

use super::super::device::{How, PeerChange};
use super::*;

const KEY: PublicKey = PublicKey([2; 32]);
const NEXT: PublicKey = PublicKey([3; 32]);
const INNER: Ipv4Addr = Ipv4Addr::new(100, 127, 81, 2);

/// A watch, and the clock that it goes by.
struct World {
    watch: Watch,
    now: Moment,
    device: Observed,
}

impl World {
    /// A device with a peer that was never heard.
    fn new() -> Self {
        let mut device = Observed {
            public_key: Some(PublicKey([1; 32])),
            ..Observed::default()
        };
        let peer = ObservedPeer {
            endpoint: Some(candidate(2)),
            allowed: BTreeSet::from([ipnetwork::IpNetwork::from(std::net::IpAddr::V4(INNER))]),
            ..ObservedPeer::default()
        };
        device.peers.insert(KEY, peer);
        let watch = Watch::default();
        let now = Moment::now();
        Self { watch, now, device }
    }

    fn peer(&mut self) -> &mut ObservedPeer {
        self.device.peers.get_mut(&KEY).unwrap()
    }

    fn pass(&mut self, seconds: u64) {
        let time = Duration::from_secs(seconds);
        self.now.at += time;
        self.now.wall += time;
    }

    /// A second later it is looked at.
    fn look(&mut self) -> PeerStatus {
        self.pass(1);
        self.watch.look(&self.device, self.now);
        self.watch.status_of(INNER, self.now).unwrap()
    }

    /// A handshake was completed just now.
    fn shake(&mut self) {
        let now = self.now.wall;
        self.peer().last_handshake = Some(now);
        self.peer().received_bytes += 92;
    }

    fn tell(&mut self, host: u8) -> WireGuardUpdate {
        let SocketAddr::V4(endpoint) = candidate(host) else {
            unreachable!()
        };
        let mut change = PeerChange::new(KEY, How::Update);
        change.endpoint = Some(endpoint);
        let message = Message {
            peers: vec![change],
            ..Message::default()
        };
        let named = Named {
            tunnel_address: INNER,
            endpoint: Some(endpoint),
            next: false,
        };
        let update = WireGuardUpdate {
            messages: vec![message],
            named: BTreeMap::from([(KEY, named)]),
        };
        self.watch.told(&update, [self.now; 2]);
        self.peer().endpoint = Some(endpoint.into());
        update
    }
}

fn candidate(host: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, host], 6783))
}

#[test]
fn a_peer_is_heard_when_more_came_of_it() {
    let mut world = World::new();
    assert_eq!(world.look().heard, None);
    world.peer().received_bytes = 32;
    assert_eq!(world.look().heard, Some(Duration::ZERO));
    assert_eq!(world.look().heard, Some(Duration::from_secs(1)));
    // It was made anew, and counts anew.
    world.peer().received_bytes = 0;
    world.look();
    world.peer().received_bytes = 1;
    assert_eq!(world.look().heard, Some(Duration::ZERO));
}

#[test]
fn what_came_before_the_first_look_says_nothing_but_a_handshake_does() {
    let mut world = World::new();
    world.peer().received_bytes = 1 << 20;
    assert_eq!(world.look().heard, None);
    let mut world = World::new();
    world.shake();
    world.pass(9);
    let status = world.look();
    assert_eq!(status.heard, Some(Duration::from_secs(10)));
    assert_eq!(status.last_handshake, status.heard);
    // What a former run told and reached is adopted.
    assert_eq!(status.proven, Some(candidate(2)));
}

#[test]
fn a_place_is_proven_by_a_handshake_there() {
    let mut world = World::new();
    assert_eq!(world.look().proven, None, "it was only told");
    world.shake();
    assert_eq!(world.look().proven, Some(candidate(2)));
    assert_eq!(world.look().proven, Some(candidate(2)), "it stays");
    // Somebody repeats elsewhere what it advertised once.
    world.peer().endpoint = Some(candidate(9));
    world.peer().received_bytes += 148;
    assert_eq!(world.look().proven, None);
    // It roamed.
    world.shake();
    assert_eq!(world.look().proven, Some(candidate(9)));
}

#[test]
fn a_place_that_is_told_is_proven_by_a_later_handshake_only() {
    let mut world = World::new();
    world.shake();
    assert_eq!(world.look().proven, Some(candidate(2)));
    // The last handshake with the old place came after the last look at it.
    world.shake();
    world.pass(1);
    world.tell(7);
    assert_eq!(
        world.watch.status_of(INNER, world.now).unwrap().proven,
        None
    );
    assert_eq!(world.look().proven, None);
    world.shake();
    assert_eq!(world.look().proven, Some(candidate(7)));
}

#[test]
fn a_clock_that_is_set_back_hides_no_handshake() {
    let mut world = World::new();
    world.look();
    world.tell(7);
    world.now.wall -= Duration::from_hours(2);
    world.pass(1);
    world.shake();
    assert_eq!(world.look().proven, Some(candidate(7)));
}

#[test]
fn a_handshake_that_began_when_the_place_was_told_proves_it() {
    let mut world = World::new();
    world.look();
    let began = world.now;
    world.pass(1);
    world.shake();
    world.pass(1);
    let update = world.tell(2);
    world.watch.told(&update, [began, world.now]);
    assert_eq!(world.look().proven, Some(candidate(2)));
}

#[test]
fn a_look_from_before_a_change_counts_no_more() {
    let mut world = World::new();
    world.shake();
    let (before, asked) = (world.device.clone(), world.now);
    world.pass(1);
    world.tell(7);
    world.watch.look(&before, asked);
    assert_eq!(
        world.watch.status_of(INNER, world.now),
        None,
        "it knows nothing yet"
    );
    assert_eq!(world.look().endpoint, Some(candidate(7)));
}

#[test]
fn a_peer_is_lost_when_its_session_ended_in_silence() {
    let mut world = World::new();
    let lost = |world: &World| {
        let looked = world.watch.looked(world.device.clone(), world.now);
        looked.lost.contains(&KEY)
    };
    world.pass(300);
    world.look();
    assert!(!lost(&world), "it never was there");
    world.shake();
    world.look();
    world.pass(170);
    assert!(!lost(&world), "its session may go on");
    world.pass(20);
    assert!(lost(&world));
    world.peer().received_bytes += 1;
    world.look();
    assert!(!lost(&world), "it was heard");
}

#[test]
fn the_next_key_is_in_use_after_a_handshake_with_it() {
    let mut world = World::new();
    world.look();
    let next = Named {
        tunnel_address: INNER,
        endpoint: None,
        next: true,
    };
    let update = WireGuardUpdate {
        messages: Vec::new(),
        named: BTreeMap::from([(NEXT, next)]),
    };
    world.watch.told(&update, [world.now; 2]);
    assert_eq!(world.watch.next_keys(), BTreeSet::from([NEXT]));
    world.device.peers.insert(NEXT, ObservedPeer::default());
    assert_eq!(world.look().key, KEY);
    let now = world.now.wall;
    world.device.peers.get_mut(&NEXT).unwrap().last_handshake = Some(now);
    let status = world.look();
    assert_eq!(status.key, NEXT);
    assert_eq!(status.heard, Some(Duration::from_secs(1)));
    assert_eq!(
        status.endpoint,
        Some(candidate(2)),
        "the old one still has the network"
    );
}
