//! The parts of `/etc/resolv.conf` that matter here. Pure.
//!
//! Absent on purpose: `sortlist`, and the options for timeouts and rotation; which
//! resolver is asked when depends on how they behave (`upstream`). Resolvers at IPv6
//! link-local addresses are left out, as they need an interface too.

use std::net::IpAddr;

/// No more resolvers than this are tried, as in libc.
pub const RESOLVERS_MAX: usize = 3;
/// No more domains than this are searched: each costs two queries.
const SEARCH_MAX: usize = 6;
/// As in libc.
const NDOTS_MAX: usize = 15;

/// A host's resolver settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    /// The resolvers, deduplicated.
    pub nameservers: Vec<IpAddr>,
    /// The domains in which short names are searched.
    pub search: Vec<String>,
    /// A name with this many dots is first looked up as it is.
    pub ndots: usize,
}

impl Default for ResolvConf {
    fn default() -> Self {
        Self {
            nameservers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
        }
    }
}

impl ResolvConf {
    /// Parses the text of a file; the unknown is skipped.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => conf.add(words.next()),
                Some("search") => {
                    conf.search = words.take(SEARCH_MAX).map(str::to_owned).collect();
                }
                Some("domain") => conf.search = words.take(1).map(str::to_owned).collect(),
                Some("options") => {
                    let mut ndots =
                        words.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok());
                    conf.ndots = ndots.next_back().unwrap_or(conf.ndots).min(NDOTS_MAX);
                }
                _ => {}
            }
        }
        conf
    }

    fn add(&mut self, word: Option<&str>) {
        let Some(Ok(ip)) = word.map(str::parse::<IpAddr>) else {
            return;
        };
        // An IPv4-mapped IPv6 address is the same resolver.
        let ip = ip.to_canonical();
        if self.nameservers.len() < RESOLVERS_MAX && !self.nameservers.contains(&ip) {
            self.nameservers.push(ip);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_is_read_and_the_rest_is_skipped() {
        let text = "# nameserver 1.1.1.1\n; nameserver 1.1.1.2\ndomain old.example\n\
                    search a.example b.example\noptions edns0 ndots:2 ndots:99\n\
                    nameserver 192.0.2.53 # the first\nnameserver fe80::1%eth0\n\
                    \tnameserver ::ffff:192.0.2.53\nnameserver x\nnameserver\n\
                    nameserver 2001:db8::53\nnameserver 0.0.0.0\nnameserver 192.0.2.54\n";
        let conf = ResolvConf::parse(text);
        let named = ["192.0.2.53", "2001:db8::53", "0.0.0.0"];
        assert_eq!(
            conf.nameservers,
            named.map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        assert_eq!(conf.search, ["a.example", "b.example"]);
        assert_eq!(conf.ndots, NDOTS_MAX);
        assert_eq!(ResolvConf::parse(""), ResolvConf::default());
    }
}
