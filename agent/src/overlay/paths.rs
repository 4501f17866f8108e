//! The pairs of this node, kept up: probes are sent and heard, and what follows from
//! them is published.
//!
//! The sealed path lives with them (`pairs.rs`), because probes need it while nobody
//! reconciles. Everything is behind one lock that is held for short: no await, no disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kontena_schema::ids::NodeId;
use kontena_schema::key::PublicKey;
use kontena_schema::limits::WIREGUARD_PORT;
use kontena_sleeve::{Message, Settings, Sleeve, SleeveError, Table};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use super::TAP;
use super::error::Cause;
use super::knock::{self, Answers};
use super::pair::{Clear, Pair, Wanted};
use super::pairs::{Health, PairStates, Pairs, TICK};
use super::probe::Probe;
use super::sealed::{Post, Sealed, Sleeved, Watched};
use super::state::{SleeveIdentity, SleeveState, TrialIdentity};
use super::trial_post::{Heard, TrialPost};
use super::wireguard::{Control, Looked, Moment, Observed, Retold};

/// Most messages that wait to be read. More than one probe of each peer never wait,
/// and what is lost is sent again.
const INBOX: usize = 1024;

/// The pairs of this node.
pub(crate) struct Paths {
    shared: Arc<Shared>,
    _keeper: AbortOnDropHandle<()>,
    _knocker: AbortOnDropHandle<()>,
}

/// What is known of the pairs, for those who keep them up.
pub(crate) struct Shared {
    pairs: Mutex<Pairs>,
    /// The way to WireGuard, where it seals.
    control: Option<Control>,
    states: watch::Sender<PairStates>,
    inbox: mpsc::Sender<Message>,
    trials: mpsc::Sender<Heard>,
}

impl Paths {
    /// No pairs yet; must be called inside a tokio runtime. `control` is the way to
    /// WireGuard, where it seals.
    pub(crate) fn new(control: Option<Control>) -> Self {
        let (inbox, messages) = mpsc::channel(INBOX);
        let (trials, heard) = mpsc::channel(INBOX);
        let watched = control.as_ref().map(|_| Box::<Watched>::default());
        let pairs = Pairs::new(watched.map(Sealed::WireGuard));
        let shared = Arc::new(Shared {
            pairs: Mutex::new(pairs),
            control,
            states: watch::Sender::new(PairStates::new()),
            inbox,
            trials,
        });
        let keeper = tokio::spawn(keep(Arc::clone(&shared), messages, heard));
        let knocker = tokio::spawn(knock::keep(Arc::clone(&shared)));
        Self {
            shared,
            _keeper: AbortOnDropHandle::new(keeper),
            _knocker: AbortOnDropHandle::new(knocker),
        }
    }

    /// What is known of the pairs, now and later.
    pub(crate) fn states(&self) -> watch::Receiver<PairStates> {
        self.shared.subscribe()
    }

    /// Starts the sleeve in the network namespace of the calling thread, after
    /// ending the one that was there.
    pub(crate) fn start_sleeve(&self, identity: SleeveIdentity) -> Result<(), SleeveError> {
        self.stop_sleeve();
        let inbox = self.shared.inbox.clone();
        let settings = Settings {
            device: TAP.to_owned(),
            port: WIREGUARD_PORT,
            inner: identity.inner,
            vni: identity.vni,
        };
        let sleeve = Sleeve::start(settings, move |message| {
            let _ = inbox.try_send(message);
        })?;
        self.shared.lock().ways.sealed = Some(Sealed::Sleeve(Sleeved {
            sleeve,
            identity,
            table: Table::default(),
        }));
        Ok(())
    }

    /// Ends the sleeve.
    pub(crate) fn stop_sleeve(&self) {
        let ended = self.shared.lock().ways.sealed.take();
        // Its threads are waited for without the lock.
        drop(ended);
    }

    /// Sets who is at the other ends. Without a sleeve there is nobody.
    pub(crate) fn set_table(&self, table: &Table) {
        if let Some(Sealed::Sleeve(sleeved)) = &mut self.shared.lock().ways.sealed {
            sleeved.sleeve.set_table(table);
            sleeved.table = table.clone();
        }
    }

    /// The sleeve, if it works.
    pub(crate) fn sleeve(&self) -> Option<SleeveState> {
        let pairs = self.shared.lock();
        let Some(Sealed::Sleeve(sleeved)) = &pairs.ways.sealed else {
            return None;
        };
        sleeved.sleeve.is_alive().then(|| SleeveState {
            identity: sleeved.identity,
            table: sleeved.table.clone(),
        })
    }

    /// Whether a sleeve that was started still works.
    pub(crate) fn seals(&self) -> bool {
        match &self.shared.lock().ways.sealed {
            Some(Sealed::Sleeve(sleeved)) => sleeved.sleeve.is_alive(),
            Some(Sealed::WireGuard(_)) => true,
            None => false,
        }
    }

    /// The way to WireGuard, where it seals.
    pub(crate) fn control(&self) -> Option<&Control> {
        self.shared.control.as_ref()
    }

    /// Looks at WireGuard; none if there is no device.
    pub(crate) async fn look(&self) -> Result<Option<Looked>, Cause> {
        self.shared.look().await
    }

    /// Tells WireGuard who the peers are.
    pub(crate) async fn retell(&self, retold: &Retold) -> Result<(), Cause> {
        let Some(control) = self.control() else {
            return Ok(());
        };
        let began = Moment::now();
        for message in &retold.messages {
            control.change(message).await?;
        }
        let mut pairs = self.shared.lock();
        if let Some(Sealed::WireGuard(watched)) = &mut pairs.ways.sealed {
            watched.watch.told(retold, [began, Moment::now()]);
        }
        Ok(())
    }

    /// Hears probes at the own inner address, on WireGuard's device of this number.
    pub(crate) fn hear_probes(&self, at: (Ipv4Addr, u32)) -> Result<(), Cause> {
        let mut pairs = self.shared.lock();
        if let Some(Sealed::WireGuard(watched)) = &mut pairs.ways.sealed {
            // The old one has the address.
            watched.post = None;
            let post = Post::open(at, self.shared.inbox.clone());
            watched.post = Some(post.map_err(Cause::io("the socket of probes"))?);
        }
        Ok(())
    }

    /// Sends trials as this one, and hears them on the bridge of this number.
    pub(crate) fn hear_trials(&self, identity: TrialIdentity, bridge: u32) -> Result<(), Cause> {
        let post = TrialPost::open(identity, bridge, self.shared.trials.clone());
        let post = post.map_err(Cause::io("the sockets of trials"))?;
        self.shared.lock().ways.trials = Some(post);
        Ok(())
    }

    /// As whom trials are sent, and the number of the bridge where they are heard.
    pub(crate) fn trials(&self) -> Option<(TrialIdentity, u32)> {
        self.shared.lock().ways.trials.as_ref().map(TrialPost::at)
    }

    /// The bridge goes.
    pub(crate) fn forget_trials(&self) {
        self.shared.lock().ways.trials = None;
    }

    /// WireGuard's device goes.
    pub(crate) fn forget_wireguard(&self) {
        if let Some(Sealed::WireGuard(watched)) = &mut self.shared.lock().ways.sealed {
            **watched = Watched::default();
        }
    }

    /// Where probes are heard: the inner address, and the number of the device.
    pub(crate) fn hears(&self) -> Option<(Ipv4Addr, u32)> {
        match &self.shared.lock().ways.sealed {
            Some(Sealed::WireGuard(watched)) => Some(watched.post.as_ref()?.at),
            _ => None,
        }
    }

    /// The keys that peers will use next and that the sealed path knows.
    pub(crate) fn next_keys(&self) -> BTreeSet<PublicKey> {
        let pairs = self.shared.lock();
        pairs
            .ways
            .sealed
            .iter()
            .flat_map(Sealed::next_keys)
            .collect()
    }

    /// Takes what the directory says, and answers what follows for each pair. Pairs that are not known yet are as `adopted`
    /// says, which is what a former run left.
    pub(crate) fn want(
        &self,
        wanted: BTreeMap<NodeId, Wanted>,
        adopted: &BTreeMap<NodeId, Clear>,
    ) -> PairStates {
        let mut pairs = self.shared.lock();
        pairs.want(wanted, adopted, Instant::now());
        self.shared.publish(&pairs);
        pairs.states()
    }

    /// Of which peers the kernel takes clear packets now.
    pub(crate) fn set_accepted(&self, accepted: &BTreeSet<NodeId>) {
        let mut pairs = self.shared.lock();
        if pairs.set_accepted(accepted, Instant::now()) {
            self.shared.publish(&pairs);
        }
    }

    /// How the way to each peer is.
    pub(crate) fn health(&self) -> BTreeMap<NodeId, Health> {
        self.shared.lock().health()
    }

    /// What the sealed path dropped since its start.
    pub(crate) fn drops(&self) -> Option<kontena_sleeve::Drops> {
        let pairs = self.shared.lock();
        pairs.ways.sealed.as_ref()?.drops()
    }
}

/// Hears and probes, for ever.
async fn keep(
    shared: Arc<Shared>,
    mut messages: mpsc::Receiver<Message>,
    mut trials: mpsc::Receiver<Heard>,
) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                shared.look_if_due().await;
                let mut pairs = shared.lock();
                if pairs.settle_due(Instant::now()) {
                    shared.publish(&pairs);
                }
            }
            Some(message) = messages.recv() => shared.hear(&message),
            Some(heard) = trials.recv() => shared.hear_trial(&heard),
        }
    }
}

impl Shared {
    /// A panic elsewhere leaves pairs that are as good as before.
    fn lock(&self) -> MutexGuard<'_, Pairs> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at WireGuard if pairs are looked at now.
    async fn look_if_due(&self) {
        if self.control.is_some()
            && self.lock().is_due(Instant::now())
            && let Err(err) = self.look().await
        {
            tracing::debug!(%err, "WireGuard cannot be looked at");
        }
    }

    async fn look(&self) -> Result<Option<Looked>, Cause> {
        let Some(control) = &self.control else {
            return Ok(None);
        };
        let asked = Moment::now();
        let device = control.observe().await?;
        let mut pairs = self.lock();
        let Some(Sealed::WireGuard(watched)) = &mut pairs.ways.sealed else {
            return Ok(None);
        };
        let watch = &mut watched.watch;
        // Without a device there are no peers.
        watch.look(device.as_ref().unwrap_or(&Observed::default()), asked);
        Ok(device.map(|device| watch.looked(device, asked)))
    }

    fn hear(&self, message: &Message) {
        let Some(probe) = Probe::read(&message.contents) else {
            return;
        };
        let now = Instant::now();
        let of = |pair: &Pair| pair.inner() == message.from;
        self.hear_from(of, |pair| pair.hear(probe, now), now);
    }

    fn hear_trial(&self, heard: &Heard) {
        let of = |pair: &Pair| pair.mac() == heard.from;
        self.hear_from(of, |pair| pair.hear_trial(heard.trial), Instant::now());
    }

    /// Something came from a peer, if it is one; what `hear` does not take changes nothing.
    fn hear_from(
        &self,
        of: impl Fn(&Pair) -> bool,
        hear: impl FnOnce(&mut Pair) -> bool,
        now: Instant,
    ) {
        let mut pairs = self.lock();
        if let Some((node, state)) = pairs.hear(of, hear, now) {
            // In a large grid far more often one pair changes than all are looked at.
            self.states.send_if_modified(|states| {
                let before = states.insert(node, state);
                before != Some(state)
            });
        }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<PairStates> {
        self.states.subscribe()
    }

    /// The peer to knock for now, if it is anybody's turn; and where.
    pub(crate) fn next_knock(&self) -> Option<(NodeId, Vec<Ipv4Addr>)> {
        self.lock().next_knock(Instant::now())
    }

    /// That was found.
    pub(crate) fn knocked(&self, node: NodeId, answers: Answers) {
        let mut pairs = self.lock();
        if pairs.knocked(node, answers) {
            self.publish(&pairs);
        }
    }

    /// Nobody publishes something older afterwards: the lock is still held.
    fn publish(&self, pairs: &MutexGuard<'_, Pairs>) {
        let states = pairs.states();
        self.states.send_if_modified(|old| {
            let differs = *old != states;
            *old = states;
            differs
        });
    }
}
