//! What a batch of requests for addresses does ([`super::lane`]): the releases go
//! first, then what is asked for by name, then the rest in order.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;

use kontena_schema::http::addresses::{Address, Addresses, HolderKind};
use kontena_schema::ids::{GridId, LeaseNumber, Revision};
use kontena_schema::query::{self, Query};
use tokio_postgres::Row;

use super::grid::Empty;
use super::lease::{self, Holder, Lease, Step};
use super::reservation::{Answer, Asked, Outcome, Wish};
use super::{Call, Changed, ControlError, IdempotencyKey, LockedGrid, replay};
use crate::db::{DbError, Param, Tx};

/// What became of a batch, in the order of the requests.
pub(super) type Applied = Changed<Vec<Outcome>>;

/// A batch that one statement can carry out: there are no keys to keep, and no
/// addresses asked for by name.
pub(super) struct AtOnce<'a> {
    grid: &'a str,
    parts: Parts<'a>,
}

impl<'a> AtOnce<'a> {
    /// The statement, which takes the grid's lock.
    pub(super) const STATEMENT: &'static Query = &query::RESERVATION_BATCH;

    /// None if it takes more than a statement.
    pub(super) fn of(grid: &'a str, asked: &'a [Asked]) -> Option<Self> {
        let parts = Parts::of(asked, 0..asked.len());
        let keyed = asked.iter().any(|(call, _)| call.idempotency.is_some());
        (parts.claims.is_empty() && !keyed).then_some(Self { grid, parts })
    }

    /// The statement's parameters.
    pub(super) fn params(&self) -> [Param<'_>; 7] {
        params(&self.grid, &Serves::No, &self.parts)
    }

    /// What the statement did. None, and it did nothing, if placements are to be served
    /// first.
    pub(super) fn read(&self, rows: &[Row]) -> Result<Option<Applied>, ControlError> {
        let row = rows.first().ok_or(DbError::NoRow(Self::STATEMENT.name))?;
        let Some(id) = row.get::<_, Option<GridId>>(0) else {
            return Err(ControlError::not_found("grid", self.grid));
        };
        if !went(row) {
            return Ok(None);
        }
        let mut outcomes = BTreeMap::new();
        let stamped = read(row, &self.parts, &mut outcomes);
        Ok(Some(Changed {
            value: outcomes.into_values().collect(),
            ring: (stamped > 0).then_some((id, Revision(stamped))),
        }))
    }
}

/// Carries a batch out in a transaction, whatever it takes.
pub(super) async fn apply(
    grid: &LockedGrid<'_, '_>,
    asked: &[Asked],
) -> Result<Applied, ControlError> {
    let mut outcomes: BTreeMap<usize, Outcome> = replays(grid.tx, asked).await?;
    let open: Vec<usize> = (0..asked.len())
        .filter(|n| !outcomes.contains_key(n))
        .collect();
    let parts = Parts::of(asked, open.iter().copied());
    let done = parts.claims.is_empty() && batch(grid, &parts, Serves::No, &mut outcomes).await?;
    if !done {
        // What becomes free is first for those that wait.
        let (releases, claims, takes) = parts.split();
        batch(grid, &releases, Serves::Yes, &mut outcomes).await?;
        lease::serve(grid).await?;
        for (n, call, name, ip) in &claims {
            outcomes.insert(*n, claim(grid, call, name, *ip).await?);
        }
        batch(grid, &takes, Serves::Yes, &mut outcomes).await?;
    }
    store(grid.tx, asked, &open, &outcomes).await?;
    Ok(grid.changed(outcomes.into_values().collect()))
}

/// Takes the calls' keys; answers those that were used before.
async fn replays(tx: &Tx<'_>, asked: &[Asked]) -> Result<BTreeMap<usize, Outcome>, ControlError> {
    let mut outcomes = BTreeMap::new();
    let keyed: Vec<(usize, &Call, &IdempotencyKey)> = (asked.iter().enumerate())
        .filter_map(|(n, (call, _))| Some((n, call, call.idempotency.as_ref()?)))
        .collect();
    if keyed.is_empty() {
        return Ok(outcomes);
    }
    let keys: Vec<&str> = keyed.iter().map(|(_, _, key)| key.key.as_str()).collect();
    let actors: Vec<&str> = keyed
        .iter()
        .map(|(_, call, _)| call.actor.as_str())
        .collect();
    let hashes: Vec<&[u8]> = (keyed.iter())
        .map(|(_, _, key)| key.request_hash.as_slice())
        .collect();
    let claim: [Param; 3] = [&keys, &actors, &hashes];
    let rows = tx.rows(&query::IDEMPOTENCY_CLAIM_MANY, &claim).await?;
    let claimed: HashSet<(String, String)> =
        rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for (n, call, key) in keyed {
        if claimed.contains(&(key.key.clone(), call.actor.clone())) {
            continue;
        }
        let earlier = match &asked[n].1 {
            Wish::Take { .. } | Wish::Claim { .. } => {
                replay(tx, call, key).await.map(Answer::Taken)
            }
            Wish::Release { .. } => replay(tx, call, key).await.map(Answer::Released),
        };
        let outcome = match earlier {
            Ok(answer) => Outcome::Done(answer),
            Err(ControlError::Db(error)) => return Err(error.into()),
            Err(error) => Outcome::Refused(error),
        };
        outcomes.insert(n, outcome);
    }
    Ok(outcomes)
}

/// Keeps what was done under the calls' keys, and gives up the keys of what was
/// refused: it may go through when it is tried again.
async fn store(
    tx: &Tx<'_>,
    asked: &[Asked],
    open: &[usize],
    outcomes: &BTreeMap<usize, Outcome>,
) -> Result<(), ControlError> {
    let (mut keys, mut actors, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
    let (mut lost_keys, mut lost_actors) = (Vec::new(), Vec::new());
    for n in open {
        let call = &asked[*n].0;
        let Some(key) = &call.idempotency else {
            continue;
        };
        match outcomes.get(n) {
            Some(Outcome::Done(answer)) => {
                keys.push(key.key.as_str());
                actors.push(call.actor.as_str());
                bodies.push(serde_json::to_value(answer).expect("addresses are plain JSON"));
            }
            _ => {
                lost_keys.push(key.key.as_str());
                lost_actors.push(call.actor.as_str());
            }
        }
    }
    if !keys.is_empty() {
        let params: [Param; 4] = [&keys, &actors, &200_i16, &bodies];
        tx.execute(&query::IDEMPOTENCY_STORE_MANY, &params).await?;
    }
    if !lost_keys.is_empty() {
        let params: [Param; 2] = [&lost_keys, &lost_actors];
        tx.execute(&query::IDEMPOTENCY_UNCLAIM_MANY, &params)
            .await?;
    }
    Ok(())
}

/// An address that is asked for by name: by which request, and as what.
type Claim<'a> = (usize, &'a Call, &'a str, Ipv4Addr);

/// A batch by what is asked for.
#[derive(Default)]
struct Parts<'a> {
    actor: &'a str,
    releases: Releases,
    takes: Takes<'a>,
    claims: Vec<Claim<'a>>,
}

impl<'a> Parts<'a> {
    fn of(asked: &'a [Asked], open: impl Iterator<Item = usize>) -> Self {
        let mut parts = Self {
            actor: asked.first().map_or("", |(call, _)| call.actor.as_str()),
            ..Self::default()
        };
        for n in open {
            match &asked[n] {
                (_, Wish::Release { ip, lease }) => {
                    parts.releases.who.push(n);
                    parts.releases.ips.push(ip.to_string());
                    parts.releases.leases.push(*lease);
                }
                (call, Wish::Claim { name, ip }) => parts.claims.push((n, call, name, *ip)),
                (_, Wish::Take { name, count }) => {
                    parts.takes.who.push(n);
                    parts.takes.counts.push(i64::from(*count));
                    parts.takes.names.push(name);
                }
            }
        }
        parts
    }

    /// The releases alone, the claims, and the takes alone.
    fn split(self) -> (Self, Vec<Claim<'a>>, Self) {
        let releases = Self {
            actor: self.actor,
            releases: self.releases,
            ..Self::default()
        };
        let takes = Self {
            actor: self.actor,
            takes: self.takes,
            ..Self::default()
        };
        (releases, self.claims, takes)
    }
}

/// The releases of a batch, in the order of the requests.
#[derive(Default)]
struct Releases {
    who: Vec<usize>,
    ips: Vec<String>,
    leases: Vec<Option<LeaseNumber>>,
}

/// The takes of a batch, in the order of the requests.
#[derive(Default)]
struct Takes<'a> {
    who: Vec<usize>,
    counts: Vec<i64>,
    names: Vec<&'a str>,
}

/// Whether the caller serves those that wait for an address.
#[derive(Clone, Copy)]
enum Serves {
    Yes,
    No,
}

fn params<'a>(grid: &'a &str, serves: &Serves, parts: &'a Parts<'_>) -> [Param<'a>; 7] {
    let serves: &bool = match serves {
        Serves::Yes => &true,
        Serves::No => &false,
    };
    [
        grid,
        serves,
        &parts.actor,
        &parts.releases.ips,
        &parts.releases.leases,
        &parts.takes.counts,
        &parts.takes.names,
    ]
}

/// Releases and takes, in one call; false, and nothing is done, if placements wait
/// that the caller does not serve.
async fn batch(
    grid: &LockedGrid<'_, '_>,
    parts: &Parts<'_>,
    serves: Serves,
    outcomes: &mut BTreeMap<usize, Outcome>,
) -> Result<bool, ControlError> {
    if parts.releases.who.is_empty() && parts.takes.who.is_empty() {
        return Ok(true);
    }
    let name = grid.row.name.as_str();
    let batch = &query::RESERVATION_BATCH;
    let params = params(&name, &serves, parts);
    let rows = grid.tx.rows(batch, &params).await?;
    let row = rows.first().ok_or(DbError::NoRow(batch.name))?;
    let went = went(row);
    if went {
        grid.stamped(read(row, parts, outcomes));
    }
    Ok(went)
}

/// Whether anything was done.
fn went(row: &Row) -> bool {
    row.get(1)
}

/// What the answer says of each; the revision that it stamped, or 0.
fn read(row: &Row, parts: &Parts<'_>, outcomes: &mut BTreeMap<usize, Outcome>) -> i64 {
    let in_force: Vec<Option<LeaseNumber>> = row.get(2);
    let kinds: Vec<Option<&str>> = row.get(3);
    let found = in_force.into_iter().zip(kinds);
    released(&parts.releases, found, outcomes);
    let leases: Vec<Lease> = (row.get::<_, Vec<&str>>(5).iter())
        .zip(row.get::<_, Vec<i16>>(6))
        .zip(row.get::<_, Vec<LeaseNumber>>(7))
        .map(|((ip, class), number)| Lease {
            ip: ip.parse().expect("Postgres's host() writes an address"),
            class,
            number,
        })
        .collect();
    given(&parts.takes, row.get(4), &leases, row.get(8), outcomes);
    row.get(9)
}

/// What became of releases, by the lease and the kind of holder that each found.
fn released<'a>(
    releases: &Releases,
    found: impl Iterator<Item = (Option<LeaseNumber>, Option<&'a str>)>,
    outcomes: &mut BTreeMap<usize, Outcome>,
) {
    let asked = releases.who.iter().zip(&releases.ips).zip(&releases.leases);
    for (((n, ip), wanted), (lease, kind)) in asked.zip(found) {
        let stale = wanted.is_some() && lease != *wanted;
        let outcome = match kind {
            Some("reservation") if !stale => Outcome::Done(Answer::Released(Empty {})),
            None | Some("reservation") => {
                Outcome::Refused(ControlError::not_found("reservation", ip))
            }
            Some(_) => Outcome::Refused(ControlError::Conflict {
                code: "address_not_reserved",
                message: format!("{ip} is held by an instance or a node, not by a reservation"),
            }),
        };
        outcomes.insert(*n, outcome);
    }
}

/// What became of takes, by which of them fitted.
fn given(
    takes: &Takes<'_>,
    fits: Vec<bool>,
    mut leases: &[Lease],
    at: &str,
    outcomes: &mut BTreeMap<usize, Outcome>,
) {
    let asked = takes.who.iter().zip(&takes.names).zip(&takes.counts);
    for (((n, name), count), fits) in asked.zip(fits) {
        let count = u32::try_from(*count).expect("it was a u32");
        let outcome = if fits {
            let (own, rest) = leases.split_at(count as usize);
            leases = rest;
            taken(name, own, at)
        } else {
            Outcome::Full(count)
        };
        outcomes.insert(*n, outcome);
    }
}

async fn claim(
    grid: &LockedGrid<'_, '_>,
    call: &Call,
    name: &str,
    ip: Ipv4Addr,
) -> Result<Outcome, ControlError> {
    let subnet = grid.row.subnet;
    let inside = subnet.contains(ip) && ip != subnet.network() && ip != subnet.broadcast();
    if !inside {
        let reason = format!("is no usable address of the grid's subnet {subnet}");
        return Ok(Outcome::Refused(ControlError::field("address", reason)));
    }
    let row = lease::rows(grid, &[ip]).await?.pop();
    if let Some(holder) = row.as_ref().and_then(|row| row.holder.as_deref()) {
        return Ok(Outcome::Refused(ControlError::Conflict {
            code: "address_held",
            message: format!("{ip} is held by {holder}"),
        }));
    }
    let lease = Lease {
        ip,
        class: kontena_schema::address::class(subnet, ip),
        number: lease::next_number(grid).await?,
    };
    let step = Step {
        event: "leased",
        kind: HolderKind::Reservation,
        actor: &call.actor,
        reason: "reserved",
    };
    let holder = Holder {
        name,
        node: None,
        placement: None,
        node_id: None,
    };
    lease::hold(grid, &step, &[lease], &[holder]).await?;
    let at: Option<String> = grid.tx.value(&query::NOW, &[]).await?;
    Ok(taken(name, &[lease], &at.unwrap_or_default()))
}

fn taken(name: &str, leases: &[Lease], at: &str) -> Outcome {
    let mut addresses: Vec<Address> = leases
        .iter()
        .map(|lease| Address {
            address: lease.ip,
            class: u8::try_from(lease.class).unwrap_or(0),
            kind: Some(HolderKind::Reservation),
            holder: Some(name.to_owned()),
            node: None,
            lease: Some(lease.number),
            leased_at: Some(at.to_owned()),
        })
        .collect();
    addresses.sort_by_key(|address| address.address);
    let body = Addresses {
        addresses,
        next: None,
    };
    Outcome::Done(Answer::Taken(body))
}
