//! This host's keys for encrypted paths: generated, stored and rotated here.
//!
//! A key is rotated every [`KEY_LIFE`] and whenever the Master asks. The next key is
//! advertised first and used once the Master says that every connected peer is ready
//! for it. The old key still answers for a while, as peers do not all learn of the
//! change at once. Without the Master no key is rotated.
//!
//! Invariant: a key is on disk before it is advertised, and its private half never
//! leaves the host.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kontena_schema::agent::NodeEntry;
use kontena_schema::ids::KeyTurn;
use kontena_schema::key::{PublicKey, PublicKeys};
use kontena_sleeve::PrivateKey;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{error, info};

use crate::directory::{Directory, Store};

/// The longest a key is used. Its first octet shortens that, so that nodes that joined
/// together do not all rotate at once.
pub const KEY_LIFE: Duration = Duration::from_hours(7 * 24);
/// How long the old key answers before the Master is told that it is gone: a peer
/// retries its handshake every 5 s (WireGuard whitepaper section 6.4).
const OLD_KEPT: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_secs(1);
/// How soon keys that could not be saved are tried again.
const SAVE_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// What other parts need of the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostKeys {
    /// The keys that this host answers to; it initiates with the first.
    pub own: Vec<PrivateKey>,
    /// What is advertised.
    pub told: PublicKeys,
}

/// The keys, as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    current: Kept,
    next: Option<Kept>,
    /// The previous key, while it still answers.
    old: Option<Kept>,
    /// The Master's rotation count as last seen; none before the first.
    turn: Option<KeyTurn>,
}

/// A key, and since when it has its role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
struct Kept {
    key: PrivateKey,
    since: SystemTime,
}

/// How a key is stored: in base64, with the time in seconds since 1970.
#[derive(Serialize, Deserialize)]
struct Written {
    key: PublicKey,
    since_s: u64,
}

impl From<Kept> for Written {
    fn from(kept: Kept) -> Self {
        let since = kept.since.duration_since(UNIX_EPOCH);
        Self {
            // Both halves are 32 octets and encode the same way.
            key: PublicKey(kept.key.to_octets()),
            since_s: since.unwrap_or_default().as_secs(),
        }
    }
}

impl TryFrom<Written> for Kept {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let since = UNIX_EPOCH.checked_add(Duration::from_secs(written.since_s));
        Ok(Self {
            key: PrivateKey::from_octets(written.key.0),
            since: since.ok_or("the time of a key is out of range")?,
        })
    }
}

/// Generates a key. It cannot fail: the kernel's random numbers at most block early
/// in boot, and a host without them has no secrets.
pub type Make<'a> = &'a dyn Fn() -> PrivateKey;

impl Keys {
    /// The first key of a host.
    pub fn new(make: Make<'_>, now: SystemTime) -> Self {
        Self {
            current: Kept {
                key: make(),
                since: now,
            },
            next: None,
            old: None,
            turn: None,
        }
    }

    /// What the rest of the agent works with.
    pub fn host_keys(&self) -> HostKeys {
        let in_use = [Some(&self.current), self.old.as_ref()];
        let current = self.current.key.public();
        let told = match (&self.old, &self.next) {
            // Peers must know both as long as both answer.
            (Some(old), _) => PublicKeys {
                current: old.key.public(),
                next: Some(current),
            },
            (None, next) => PublicKeys {
                current,
                next: next.as_ref().map(|next| next.key.public()),
            },
        };
        let own = in_use.into_iter().flatten();
        HostKeys {
            own: own.map(|kept| kept.key.clone()).collect(),
            told,
        }
    }

    /// One step on; `own` is the Master's latest entry for this node.
    #[must_use]
    pub fn step(&self, own: Option<&NodeEntry>, make: Make<'_>, now: SystemTime) -> Self {
        let mut after = self.clone();
        if let Some(old) = &self.old {
            // If the clock was set back, it ends at once: its age is unknown.
            let kept = now.duration_since(old.since);
            if kept.map_or(true, |kept| kept >= OLD_KEPT) {
                after.old = None;
            }
            return after;
        }
        let Some((entry, known)) = own.and_then(|entry| Some((entry, entry.keys?))) else {
            return after;
        };
        after.turn = Some(entry.key_turn);
        // The Master has not yet seen what this host last advertised.
        if known != self.host_keys().told {
            after.turn = self.turn;
            return after;
        }
        match &self.next {
            Some(next) if entry.next_key_known => {
                let replaced = |key: &Kept| Kept {
                    key: key.key.clone(),
                    since: now,
                };
                after.old = Some(replaced(&self.current));
                after.current = replaced(next);
                after.next = None;
            }
            // Waiting for the peers; a request made meanwhile is already being met.
            Some(_) => {}
            None => {
                let asked = self.turn.is_some_and(|turn| turn != entry.key_turn);
                if asked || age(&self.current, now) >= life(&self.current) {
                    let key = make();
                    after.next = Some(Kept { key, since: now });
                }
            }
        }
        after
    }
}

/// [`KEY_LIFE`] less up to a tenth.
fn life(kept: &Kept) -> Duration {
    KEY_LIFE - KEY_LIFE / 2560 * u32::from(kept.key.public().0[0])
}

/// A clock set back makes a key look younger, which only delays its end.
fn age(kept: &Kept, now: SystemTime) -> Duration {
    now.duration_since(kept.since).unwrap_or_default()
}

/// Loads this host's keys, or generates the first.
pub fn load(store: &Store, make: Make<'_>) -> Keys {
    if let Some(keys) = store.keys::<Keys>() {
        return keys;
    }
    let keys = Keys::new(make, SystemTime::now());
    if let Err(err) = store.save_keys(&keys) {
        error!(%err, "cannot save this host's key; it is lost when the agent stops");
    }
    keys
}

/// Rotates the keys when due, for ever. `taken` is notified when the Master refuses
/// the key because another node has it.
pub async fn watch(
    mut keys: Keys,
    store: Store,
    mut directory: watch::Receiver<Arc<Directory>>,
    taken: Arc<Notify>,
    slot: watch::Sender<Arc<HostKeys>>,
) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Until then what could not be saved is not tried again.
    let mut held: Option<Instant> = None;
    loop {
        let after = tokio::select! {
            () = taken.notified() => Keys::new(&generate, SystemTime::now()),
            _ = ticks.tick() => step(&keys, &directory),
            Ok(()) = directory.changed() => step(&keys, &directory),
        };
        if after == keys || held.is_some_and(|until| Instant::now() < until) {
            continue;
        }
        if let Err(err) = tokio::task::block_in_place(|| store.save_keys(&after)) {
            error!(%err, "cannot save the keys; they stay as they are");
            held = Some(Instant::now() + SAVE_AGAIN_AFTER);
            continue;
        }
        held = None;
        let published = after.host_keys();
        if published != keys.host_keys() {
            info!(current = %published.told.current, next = ?published.told.next, "advertised keys changed");
            slot.send_replace(Arc::new(published));
        }
        keys = after;
    }
}

fn step(keys: &Keys, directory: &watch::Receiver<Arc<Directory>>) -> Keys {
    let directory = directory.borrow().clone();
    keys.step(directory.own(), &generate, SystemTime::now())
}

/// A key from the kernel's random numbers.
pub fn generate() -> PrivateKey {
    PrivateKey::generate()
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
