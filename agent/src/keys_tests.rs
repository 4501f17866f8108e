//! The life of a key.

use std::cell::Cell;

use super::*;
use crate::directory::tests::node;
use crate::testing::TempDir;

/// A host, the Master's word of it, and a clock.
struct World {
    keys: Keys,
    entry: NodeEntry,
    now: SystemTime,
    made: Cell<u8>,
}

impl World {
    fn new() -> Self {
        let now = UNIX_EPOCH + Duration::from_hours(400_000);
        let first = || PrivateKey::from_octets([1; 32]);
        Self {
            keys: Keys::new(&first, now),
            entry: node(1),
            now,
            made: Cell::new(1),
        }
    }

    /// The Master learns what the host tells.
    fn told(&mut self) {
        let told = self.keys.host_keys().told;
        if self.entry.keys != Some(told) {
            self.entry.next_key_known = false;
        }
        self.entry.keys = Some(told);
    }

    fn step(&mut self) -> HostKeys {
        let make = || {
            self.made.set(self.made.get() + 1);
            PrivateKey::from_octets([self.made.get(); 32])
        };
        self.keys = self.keys.step(Some(&self.entry), &make, self.now);
        self.keys.host_keys()
    }

    /// Twice the same: nothing is done over and over.
    fn settled(&mut self) -> HostKeys {
        let first = self.step();
        assert_eq!(self.step(), first);
        first
    }
}

fn key(octet: u8) -> PrivateKey {
    PrivateKey::from_octets([octet; 32])
}

fn told(current: u8, next: Option<u8>) -> PublicKeys {
    PublicKeys {
        current: key(current).public(),
        next: next.map(|next| key(next).public()),
    }
}

/// From one key to the next, however it came to it.
fn changes(world: &mut World, old: u8, new: u8) {
    let host = world.settled();
    assert_eq!(host.told, told(old, Some(new)), "it is told");
    assert_eq!(host.own, [key(old)], "and not used");
    world.told();
    assert_eq!(world.settled(), host, "before the peers are ready");
    world.entry.next_key_known = true;
    let host = world.settled();
    assert_eq!(host.own, [key(new), key(old)], "the old one still answers");
    assert_eq!(host.told, told(old, Some(new)), "and peers still know it");
    world.now += OLD_KEPT;
    let host = world.settled();
    assert_eq!((host.own, host.told), (vec![key(new)], told(new, None)));
    world.told();
    assert_eq!(world.settled().told, told(new, None));
}

#[test]
fn a_key_changes_after_its_life() {
    let mut world = World::new();
    world.told();
    let life = life(&world.keys.current);
    assert!(life <= KEY_LIFE && life > KEY_LIFE * 9 / 10);
    world.now += life - Duration::from_secs(1);
    assert_eq!(world.settled().told, told(1, None));
    world.now += Duration::from_secs(1);
    changes(&mut world, 1, 2);
    world.now += KEY_LIFE;
    changes(&mut world, 2, 3);
}

#[test]
fn a_key_changes_once_for_each_time_that_it_is_asked_for() {
    let mut world = World::new();
    world.told();
    world.entry.key_turn = KeyTurn(4);
    assert_eq!(
        world.settled().told,
        told(1, None),
        "what was asked of another"
    );
    world.entry.key_turn = KeyTurn(5);
    changes(&mut world, 1, 2);
    // Of a restored database.
    world.entry.key_turn = KeyTurn(3);
    changes(&mut world, 2, 3);
}

#[test]
fn without_the_master_no_key_changes() {
    let mut world = World::new();
    world.now += KEY_LIFE * 2;
    let keys = world.keys.step(None, &|| key(9), world.now);
    assert_eq!(keys, world.keys);
    // It does not know this host's key yet.
    assert_eq!(world.settled().told, told(1, None));
    world.entry.keys = Some(told(7, None));
    assert_eq!(world.settled().told, told(1, None));
}

#[test]
fn a_word_about_another_next_key_is_not_taken() {
    let mut world = World::new();
    world.told();
    world.now += KEY_LIFE;
    world.step();
    world.entry.keys = Some(told(1, Some(9)));
    world.entry.next_key_known = true;
    assert_eq!(world.settled().own, [key(1)]);
}

#[test]
fn keys_survive_a_restart_and_are_for_root_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new();
    let store = Store::open(dir.path()).unwrap();
    let keys = load(&store, &|| key(1));
    assert_eq!(load(&store, &|| key(2)).host_keys(), keys.host_keys());
    let mode = std::fs::metadata(dir.path().join("keys.json")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    // A host that is removed from its grid comes back as somebody else.
    store.forget().unwrap();
    assert_eq!(load(&store, &|| key(2)).host_keys().own, [key(2)]);
}

#[test]
fn a_change_goes_on_after_a_restart() {
    let dir = TempDir::new();
    let store = Store::open(dir.path()).unwrap();
    let mut world = World::new();
    world.told();
    world.now += KEY_LIFE;
    for _ in 0..3 {
        world.step();
        store.save_keys(&world.keys).unwrap();
        assert_eq!(load(&store, &|| key(9)), world.keys);
        world.told();
        world.entry.next_key_known = true;
    }
    assert_eq!(world.keys.host_keys().own, [key(2), key(1)]);
}

#[test]
fn no_two_keys_are_the_same() {
    assert_ne!(generate(), generate());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_another_node_has_is_replaced() {
    let dir = TempDir::new();
    let store = Store::open(dir.path()).unwrap();
    let keys = load(&store, &|| key(1));
    let (slot, mut published) = watch::channel(Arc::new(keys.host_keys()));
    let (_directory, seen) = watch::channel(Arc::default());
    let taken = Arc::new(Notify::new());
    let mut tasks = kontena_task::Tasks::new();
    tasks.spawn(
        "keys",
        super::watch(keys, store.clone(), seen, taken.clone(), slot),
    );
    taken.notify_one();
    published.changed().await.unwrap();
    let now = published.borrow().own.clone();
    assert_ne!(now, [key(1)]);
    assert_eq!(store.keys().unwrap().host_keys().own, now);
}
