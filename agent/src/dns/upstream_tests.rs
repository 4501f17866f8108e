use std::os::unix::fs::symlink;

use super::*;
use crate::dns::testing::{name, root, upstreams};
use crate::testing::TempDir;

/// Roots whose files name these.
fn roots<const N: usize>(named: [&[&str]; N]) -> [TempDir; N] {
    named.map(|list| {
        let dir = root(&[]);
        name(&dir, list.iter().map(|ip| ip.parse().unwrap()));
        dir
    })
}

fn first(turns: &Turns) -> Vec<String> {
    turns.first.iter().map(|at| at.ip().to_string()).collect()
}

#[tokio::test]
async fn the_first_file_that_names_somebody_to_ask_counts() {
    let dirs = roots([
        &[],
        &["172.17.0.1"],
        &["192.0.2.1", "172.17.0.1"],
        &["192.0.2.2"],
    ]);
    let upstreams = upstreams(&dirs.each_ref(), 53);
    let other = |resolver: &Resolver| resolver.address.to_string() != "172.17.0.1:53";
    assert_eq!(
        first(&upstreams.turns(Transport::Udp, other).await),
        ["192.0.2.1"]
    );
    let nobody = upstreams.turns(Transport::Udp, |_| false).await;
    assert_eq!(nobody, Turns::default());
}

#[tokio::test]
async fn the_stub_of_systemd_resolved_is_found_through_its_link() {
    let dir = TempDir::new();
    std::fs::create_dir_all(dir.path().join("run/systemd/resolve")).unwrap();
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    let stub = "run/systemd/resolve/stub-resolv.conf";
    let text = "nameserver 127.0.0.53\noptions edns0 trust-ad ndots:2\nsearch lan.example\n";
    std::fs::write(dir.path().join(stub), text).unwrap();
    // The second one would lead into the agent's own root.
    for target in [format!("../{stub}"), format!("/{stub}")] {
        let link = dir.path().join("etc/resolv.conf");
        let _ = std::fs::remove_file(&link);
        symlink(&target, link).unwrap();
        let upstreams = upstreams(&[&dir], 53);
        let turns = upstreams
            .turns(Transport::Udp, |resolver| resolver.local)
            .await;
        assert_eq!(first(&turns), ["127.0.0.53"], "{target}");
        assert_eq!(
            upstreams.search().await,
            (vec!["lan.example".to_owned()], 2)
        );
    }
}

#[tokio::test]
async fn a_stub_in_another_namespace_is_not_asked() {
    let [host, own] = roots([&["127.0.0.53"], &["192.0.2.1"]]);
    let root = |dir: &TempDir, loopback| Root {
        path: dir.path().to_path_buf(),
        loopback,
    };
    for (loopback, asked) in [(true, "127.0.0.53"), (false, "192.0.2.1")] {
        let upstreams = Upstreams::new(vec![root(&host, loopback), root(&own, true)]);
        assert_eq!(
            first(&upstreams.turns(Transport::Udp, |_| true).await),
            [asked]
        );
    }
}

#[test]
fn a_file_that_names_nobody_changes_nothing() {
    let conf = |text: &str| vec![ResolvConf::parse(text)];
    let mut state = State::default();
    state.take(conf(""), 53);
    assert!(state.resolvers.concat().is_empty());
    state.take(conf("nameserver 127.0.0.1\nnameserver 192.0.2.1\n"), 53);
    let before = state.resolvers.clone();
    let local: Vec<bool> = before
        .concat()
        .iter()
        .map(|resolver| resolver.local)
        .collect();
    assert_eq!(local, [true, false]);
    state.take(conf("search example\n"), 53);
    assert_eq!(state.resolvers, before);
    state.take(conf("nameserver 192.0.2.1\n"), 53);
    assert_eq!(state.resolvers.concat().len(), 1);
}

#[tokio::test]
async fn what_is_known_of_a_resolver_goes_with_it_and_is_of_one_transport() {
    let [dir] = roots([&["192.0.2.1", "192.0.2.2"]]);
    let upstreams = upstreams(&[&dir], 53);
    let all = async |over| upstreams.turns(over, |_| true).await;
    let dead = all(Transport::Tcp).await.first[0];
    for _ in 0..2 {
        upstreams.failed(dead, Transport::Tcp, Instant::now());
    }
    assert_eq!(all(Transport::Tcp).await.last, [dead]);
    assert_eq!(
        first(&all(Transport::Udp).await),
        ["192.0.2.1", "192.0.2.2"]
    );
    let mut state = upstreams.state();
    state.take(vec![ResolvConf::parse("nameserver 192.0.2.2\n")], 53);
    assert!(state.health.keys().all(|(at, _)| *at != dead));
}
