use std::net::Ipv4Addr;

use super::*;
use crate::dns::testing::{Says, resolvers, root, upstreams};
use crate::testing::TempDir;

const RIGHT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn lookup(roots: &[&TempDir], port: u16) -> Lookup {
    Lookup::new(upstreams(roots, port))
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn names_are_asked_for_and_long_answers_over_tcp() {
    for says in [
        Says::Address(RIGHT),
        Says::Truncated(RIGHT),
        Says::Late(RIGHT),
    ] {
        let (port, resolvers) = resolvers([Says::Code(ResponseCode::Refused), says]).await;
        let root = root(&resolvers);
        let lookup = lookup(&[&root], port);
        let found = lookup.addresses("master.example", 443).await;
        assert_eq!(found, Ok(vec![at("192.0.2.1:443")]), "{says:?}");
    }
}

#[tokio::test]
async fn why_there_is_no_address_is_told() {
    use ResponseCode::{NXDomain, NoError, ServFail};
    for (says, error) in [
        (Says::Code(NXDomain), LookupError::NoAddress),
        (Says::Code(NoError), LookupError::NoAddress),
        (Says::Code(ServFail), LookupError::Failed(ServFail)),
        (Says::Nothing, LookupError::Silent),
    ] {
        let (port, resolvers) = resolvers([says]).await;
        let root = root(&resolvers);
        let found = lookup(&[&root], port).addresses("master.example", 1).await;
        assert_eq!(found, Err(error), "{says:?}");
    }
    let empty = TempDir::new();
    let lookup = lookup(&[&empty], 1);
    for (host, error) in [
        ("master", LookupError::Silent),
        ("a..b", LookupError::NoName),
        ("", LookupError::NoName),
    ] {
        assert_eq!(lookup.addresses(host, 1).await, Err(error), "{host}");
    }
}

#[tokio::test]
async fn addresses_and_hosts_ask_nobody() {
    let (port, resolvers) = resolvers([Says::Address(RIGHT)]).await;
    let (host, agent) = (root(&resolvers), root(&resolvers));
    let hosts = |root: &TempDir, text| std::fs::write(root.path().join("etc/hosts"), text).unwrap();
    hosts(
        &host,
        "2001:db8::9 master # old\n192.0.2.9 other Master\nx master\n#192.0.2.8 master\n",
    );
    hosts(&agent, "192.0.2.7 master\n192.0.2.6 added\n");
    let lookup = lookup(&[&host, &agent], port);
    for (host, expected) in [
        ("master", &["192.0.2.9:1", "[2001:db8::9]:1"][..]),
        ("added.", &["192.0.2.6:1"]),
        ("[2001:db8::1]", &["[2001:db8::1]:1"]),
        ("192.0.2.5", &["192.0.2.5:1"]),
    ] {
        let expected: Vec<_> = expected.iter().map(|text| at(text)).collect();
        assert_eq!(
            lookup.addresses(host, 1).await.as_ref(),
            Ok(&expected),
            "{host}"
        );
    }
    assert_eq!(resolvers[0].asked(), 0);
}

#[test]
fn short_names_are_searched_in_the_domains_of_the_host() {
    let search = [
        "a.example".to_owned(),
        "b.example.".to_owned(),
        "..".to_owned(),
    ];
    let names = |host, ndots| -> Vec<String> {
        let names = candidates(host, &search, ndots).unwrap();
        names.iter().map(Name::to_ascii).collect()
    };
    let searched = ["master.a.example.", "master.b.example.", "master."];
    assert_eq!(names("master", 1), searched);
    assert_eq!(names("master.", 1), ["master."]);
    assert_eq!(
        names("m.x", 1),
        ["m.x.", "m.x.a.example.", "m.x.b.example."]
    );
    assert_eq!(
        names("m.x", 2),
        ["m.x.a.example.", "m.x.b.example.", "m.x."]
    );
}
