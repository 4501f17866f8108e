//! The rules that make the protocol right. Each can be left out, to show that the
//! checker notices.

/// A rule of the Master, of a replica or of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// A report counts only under the latest epoch, of an open session,
    ReportEpoch,
    /// and so does the end of a connection.
    CloseEpoch,
    /// A report about another lease says nothing about this one.
    ReportLease,
    /// An instance that is to end has its address until its container is gone.
    Confirmed,
    /// Who declares a node lost looks again under the grid's lock.
    LookAgain,
    /// Who waits and whose node is lost waits no more until it returns,
    ServePresent,
    /// and nobody is placed on a node that is not connected.
    PlacePresent,
    /// Who waits is served in the transaction that frees an address,
    ServeAtOnce,
    /// in the order in which they began to wait.
    ServeInOrder,
    /// Of two leases of one address the lower number keeps it.
    LowerLease,
    /// An address is taken back only for a container that is there,
    Inventory,
    /// that was created under the very lease that the row names.
    SameLease,
    /// Who had the address meanwhile loses it.
    OneHolder,
    /// A reservation or a node's number never moves.
    ReservationsStay,
    /// What is restored keeps its number.
    SameNumber,
    /// A number is used once.
    NewNumber,
    /// Nobody is served before a node has lost all that it had,
    LossIsWhole,
    /// or, when it returns, before it has all that it can keep.
    KeepersFirst,
    /// A run that was taken over from is refused while the other is connected.
    Duplicates,
    /// A connection that arrives after a later one of the same run opens nothing.
    Late,
    /// A replica without a row opens no session: nobody would notice its end.
    Registered,
    /// A replica closes the connections that do not count any more.
    DropOld,
    /// An agent replaces a container whose lease is another.
    Replace,
}

/// The rules that are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Omit(pub Option<Rule>);

impl Omit {
    pub fn obeys(self, rule: Rule) -> bool {
        self.0 != Some(rule)
    }
}
