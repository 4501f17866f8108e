//! The agent's own lookups, above all that of the Master's name; they take the same path
//! as those of containers.
//!
//! Not through libc: it sees the agent's container, whose `resolv.conf` and `hosts` were copied
//! when it was created, tries the resolvers in turn for five seconds each, and skips no
//! dead ones. As with libc, `hosts` comes first, and short names are searched in the
//! host's domains.
//!
//! Absent on purpose: a cache (the resolvers have one), and the other sources that
//! `nsswitch.conf` may name: a static binary cannot load them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use reqwest::dns::{Addrs, Resolve, Resolving};
use tokio::time::timeout;

use super::answer::Transport;
use super::forward::resolve;
use super::upstream::{Root, Upstreams};

/// Search domains included.
const LOOKUP_WITHIN: Duration = Duration::from_secs(5);
const HOSTS: &str = "/etc/hosts";
/// The longest answer that fits every path unfragmented.
const UDP_BYTES: u16 = 1232;

/// Why a name has no address here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// It cannot have any.
    #[error("not a valid host name")]
    NoName,
    /// The resolvers know none.
    #[error("the host's resolvers have no address for it")]
    NoAddress,
    /// They answered with an error.
    #[error("the host's resolvers answered {0}")]
    Failed(ResponseCode),
    /// They did not answer.
    #[error("none of the host's resolvers answered")]
    Silent,
}

/// Looks names up as the host does.
#[derive(Clone)]
pub struct Lookup {
    upstreams: Arc<Upstreams>,
}

impl Lookup {
    /// Asks these resolvers.
    pub fn new(upstreams: Arc<Upstreams>) -> Self {
        Self { upstreams }
    }

    /// Asks the host's resolvers.
    pub fn of_host() -> Self {
        Self::new(Arc::new(Upstreams::new(Root::of_host())))
    }

    /// The resolvers.
    pub fn upstreams(&self) -> &Arc<Upstreams> {
        &self.upstreams
    }

    /// The addresses of a host, IPv4 first; the host may be an address itself.
    pub async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, LookupError> {
        let bare = host.trim_matches(['[', ']']);
        let ips = match bare.parse() {
            Ok(ip) => vec![ip],
            Err(_) => self.by_name(bare).await?,
        };
        Ok(ips
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect())
    }

    async fn by_name(&self, host: &str) -> Result<Vec<IpAddr>, LookupError> {
        for text in self.upstreams.texts(HOSTS).await {
            let found = in_hosts(&text, host);
            if !found.is_empty() {
                return Ok(found);
            }
        }
        let (search, ndots) = self.upstreams.search().await;
        let names = candidates(host, &search, ndots)?;
        let found = timeout(LOOKUP_WITHIN, self.first_of(names)).await;
        found.unwrap_or(Err(LookupError::Silent))
    }

    async fn first_of(&self, names: Vec<Name>) -> Result<Vec<IpAddr>, LookupError> {
        let mut error = LookupError::NoAddress;
        for name in names {
            match self.of(&name).await {
                Ok(found) => return Ok(found),
                Err(LookupError::Silent) => return Err(LookupError::Silent),
                Err(failed @ LookupError::Failed(_)) => error = failed,
                Err(LookupError::NoAddress | LookupError::NoName) => {}
            }
        }
        Err(error)
    }

    /// IPv4 and IPv6 addresses; one kind is enough.
    async fn of(&self, name: &Name) -> Result<Vec<IpAddr>, LookupError> {
        let (v4, v6) = tokio::join!(
            self.ask(name, RecordType::A),
            self.ask(name, RecordType::AAAA)
        );
        match (v4, v6) {
            (Ok(v4), Ok(v6)) => Ok([v4, v6].concat()),
            (Ok(found), Err(_)) | (Err(_), Ok(found)) => Ok(found),
            (Err(LookupError::NoAddress), Err(error)) | (Err(error), Err(_)) => Err(error),
        }
    }

    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Vec<IpAddr>, LookupError> {
        let query = query(name, kind).ok_or(LookupError::NoName)?;
        let mut said = self.answer(&query, Transport::Udp).await?;
        if said.metadata.truncation {
            said = self.answer(&query, Transport::Tcp).await?;
        }
        addresses(&said)
    }

    async fn answer(&self, query: &[u8], over: Transport) -> Result<Message, LookupError> {
        let turns = self.upstreams.turns(over, |_| true).await;
        let answer = resolve(&self.upstreams, turns, query, over).await;
        let answer = answer.ok_or(LookupError::Silent)?;
        Message::from_vec(&answer).map_err(|_| LookupError::Failed(ResponseCode::FormErr))
    }
}

impl Resolve for Lookup {
    fn resolve(&self, name: reqwest::dns::Name) -> Resolving {
        let lookup = self.clone();
        Box::pin(async move {
            // The caller sets the port.
            let found = lookup.addresses(name.as_str(), 0).await?;
            let addresses: Addrs = Box::new(found.into_iter());
            Ok(addresses)
        })
    }
}

/// The names to look up for a host, in order.
fn candidates(host: &str, search: &[String], ndots: usize) -> Result<Vec<Name>, LookupError> {
    let parse = |text: &str| {
        let mut name = Name::from_ascii(text).ok()?;
        name.set_fqdn(true);
        Some(name)
    };
    let whole = parse(host).filter(|name| !name.is_root());
    let whole = whole.ok_or(LookupError::NoName)?;
    if host.ends_with('.') {
        return Ok(vec![whole]);
    }
    let within = |domain: &String| {
        let domain = domain.trim_end_matches('.');
        (!domain.is_empty()).then(|| parse(&format!("{host}.{domain}")))?
    };
    let mut names: Vec<Name> = search.iter().filter_map(within).collect();
    let dots = host.matches('.').count();
    let at = if dots >= ndots { 0 } else { names.len() };
    names.insert(at, whole);
    Ok(names)
}

fn query(name: &Name, kind: RecordType) -> Option<Vec<u8>> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_BYTES);
    message.set_edns(edns);
    message.to_vec().ok()
}

/// The addresses in an answer, whatever name they are for: the resolver has followed
/// the aliases.
fn addresses(said: &Message) -> Result<Vec<IpAddr>, LookupError> {
    let found: BTreeSet<IpAddr> = said
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
            _ => None,
        })
        .collect();
    let mut found: Vec<IpAddr> = found.into_iter().collect();
    fastrand::shuffle(&mut found);
    match said.metadata.response_code {
        _ if !found.is_empty() => Ok(found),
        ResponseCode::NoError | ResponseCode::NXDomain => Err(LookupError::NoAddress),
        code => Err(LookupError::Failed(code)),
    }
}

/// The addresses that `/etc/hosts` has for a name.
fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let host = host.trim_end_matches('.');
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(Ok(ip)) = words.next().map(str::parse::<IpAddr>) else {
            continue;
        };
        if words.any(|name| name.eq_ignore_ascii_case(host)) && !found.contains(&ip) {
            found.push(ip);
        }
    }
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
