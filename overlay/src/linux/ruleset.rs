//! The namespace's whole ruleset: what of it changed, and who changed it.
//!
//! The kernel numbers the generations of the ruleset. All that this process does to it
//! without a program goes through one socket, which counts its own transactions; so a number
//! tells whether anybody else has changed anything since.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Mutex;

use crate::error::Cause;
use crate::linux::nft::Present;
use crate::sys::nfnetlink::{Batch, Nftables, in_thread};

/// Access to the ruleset of one network namespace.
pub(crate) struct Ruleset {
    /// Where batches are sent.
    runtime: Handle,
    /// One batch at a time; one that hangs blocks all others.
    socket: Arc<Mutex<Socket>>,
}

/// What batches are sent through.
pub(super) struct Socket {
    pub(super) nftables: Nftables,
    /// How many generations of the ruleset were transactions of this socket, and how many of
    /// those were renewals.
    transactions: u32,
    renewals: u32,
}

/// Numbers that change with the ruleset, whoever changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revision {
    /// With every transaction but renewals, which change nothing that is listed.
    pub(crate) all: u32,
    /// With what may change other tables than those of `fast_peers.rs`.
    pub(crate) other_tables: u32,
}

/// What a transaction does to what is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Changes,
    /// Nothing: it keeps what is open so for this long.
    Renews(Duration),
}

impl Ruleset {
    /// That of the calling thread's network namespace, changed by threads of this runtime.
    pub(crate) fn here(runtime: &Handle) -> Result<Self, Cause> {
        let nftables = Nftables::open().map_err(Cause::io("the packet filter's socket"))?;
        let socket = Socket {
            nftables,
            transactions: 0,
            renewals: 0,
        };
        Ok(Self {
            runtime: runtime.clone(),
            socket: Arc::new(Mutex::new(socket)),
        })
    }

    /// Uses the socket in a thread that may wait.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Socket) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Cause> {
        in_thread(&self.runtime, &self.socket, change).await
    }

    /// None if it is not known: a transaction of ours is under way, or the kernel does not
    /// tell.
    pub(crate) async fn revision(&self) -> Option<Revision> {
        self.ask(Socket::revision).await
    }

    /// The tables, as far as they are known without waiting.
    pub(crate) async fn present(&self) -> Present {
        Present(self.ask(|socket| socket.nftables.tables()).await)
    }

    /// Asks the kernel what it tells at once. None while a transaction of ours is under way.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Socket) -> io::Result<T> + Send + 'static,
    ) -> Option<T> {
        let socket = Arc::clone(&self.socket).try_lock_owned().ok()?;
        let asked = self.runtime.spawn_blocking(move || question(&socket));
        let answer = asked.await.ok()?;
        answer
            .inspect_err(|err| tracing::debug!(%err, "cannot query the ruleset"))
            .ok()
    }
}

impl Socket {
    /// Carries a batch out. What changes nothing makes no generation, so it must not be sent.
    pub(super) fn send(&mut self, batch: &Batch, effect: Effect) -> io::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.nftables.send(batch)?;
        self.transactions = self.transactions.wrapping_add(1);
        if matches!(effect, Effect::Renews(_)) {
            self.renewals = self.renewals.wrapping_add(1);
        }
        Ok(())
    }

    fn revision(&self) -> io::Result<Revision> {
        let generation = self.nftables.generation()?;
        Ok(Revision {
            all: generation.wrapping_sub(self.renewals),
            other_tables: generation.wrapping_sub(self.transactions),
        })
    }
}
