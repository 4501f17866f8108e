//! This host's keys for encrypted paths: made here, kept here, changed in time.
//!
//! A key is changed every [`KEY_LIFE`] and whenever the Master asks. The next key is
//! told first; when the Master says that every connected peer is ready for it, it is
//! used, and the old one still answers for a while, because peers learn of the
//! change each in its time. Without the Master no key changes.
//!
//! Invariant: a key is on disk before anybody hears of it, and its secret half never
//! leaves the host.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kontena_schema::agent::NodeEntry;
use kontena_schema::ids::KeyTurn;
use kontena_schema::key::{PublicKey, PublicKeys};
use kontena_sleeve::PrivateKey;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use crate::directory::{Directory, Store};

/// How long a key is used at most; by how much less, its first octet says, so that nodes
/// that joined together do not all change at once.
pub const KEY_LIFE: Duration = Duration::from_hours(7 * 24);
/// How long the old key answers before the Master is told that it is no more: a
/// peer's handshake is repeated every 5 s (WireGuard whitepaper section 6.4).
const OLD_KEPT: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_secs(1);

/// What others need of the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostKeys {
    /// The keys under which this host answers; it begins with the first.
    pub own: Vec<PrivateKey>,
    /// What the Master is told.
    pub told: PublicKeys,
}

/// The keys, as they are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    current: Kept,
    next: Option<Kept>,
    /// The one before the current one, while it still answers.
    old: Option<Kept>,
    /// The Master's count when the last change began; none before the first look.
    turn: Option<KeyTurn>,
}

/// A key and since when it is what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
struct Kept {
    key: PrivateKey,
    since: SystemTime,
}

/// How a key is written down: in base64, and in seconds since 1970.
#[derive(Serialize, Deserialize)]
struct Written {
    key: PublicKey,
    since_s: u64,
}

impl From<Kept> for Written {
    fn from(kept: Kept) -> Self {
        let since = kept.since.duration_since(UNIX_EPOCH);
        Self {
            // Both halves are 32 octets; the text is the same.
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

/// Makes a key. It is asked of the kernel, which answers or stops the machine's
/// start; a host without random numbers has no secrets.
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

    /// One step on: `own` is what the Master last said of this node.
    #[must_use]
    pub fn step(&self, own: Option<&NodeEntry>, make: Make<'_>, now: SystemTime) -> Self {
        let mut after = self.clone();
        if let Some(old) = &self.old {
            // A clock that was set back ends it at once: nobody knows how long it was.
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
        // What it says is not what this host last told it: it is behind.
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
            // It waits for its peers; what is asked for meanwhile is on its way.
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

/// Up to a tenth less than the longest.
fn life(kept: &Kept) -> Duration {
    KEY_LIFE - KEY_LIFE / 2560 * u32::from(kept.key.public().0[0])
}

/// A clock that was set back makes a key young, which only delays its end.
fn age(kept: &Kept, now: SystemTime) -> Duration {
    now.duration_since(kept.since).unwrap_or_default()
}

/// The keys of this host, made where there are none.
pub fn load(store: &Store, make: Make<'_>) -> Keys {
    if let Some(keys) = store.keys::<Keys>() {
        return keys;
    }
    let keys = Keys::new(make, SystemTime::now());
    if let Err(err) = store.save_keys(&keys) {
        error!(%err, "this host's key is lost with this agent");
    }
    keys
}

/// Changes the keys in time, for ever. `taken` is rung when the Master refused the
/// key because another node has it.
pub async fn watch(
    mut keys: Keys,
    store: Store,
    mut directory: watch::Receiver<Arc<Directory>>,
    taken: Arc<Notify>,
    slot: watch::Sender<Arc<HostKeys>>,
) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let after = tokio::select! {
            () = taken.notified() => Keys::new(&generate, SystemTime::now()),
            _ = ticks.tick() => step(&keys, &directory),
            Ok(()) = directory.changed() => step(&keys, &directory),
        };
        if after == keys {
            continue;
        }
        if let Err(err) = tokio::task::block_in_place(|| store.save_keys(&after)) {
            error!(%err, "the key stays as it is");
            continue;
        }
        let published = after.host_keys();
        if published != keys.host_keys() {
            info!(current = %published.told.current, next = ?published.told.next, "keys");
            slot.send_replace(Arc::new(published));
        }
        keys = after;
    }
}

fn step(keys: &Keys, directory: &watch::Receiver<Arc<Directory>>) -> Keys {
    let directory = directory.borrow().clone();
    keys.step(directory.own(), &generate, SystemTime::now())
}

/// A key of the kernel's random numbers.
pub fn generate() -> PrivateKey {
    PrivateKey::generate()
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
