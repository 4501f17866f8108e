//! Both tables in a real namespace.

use tokio::runtime::Handle;

use super::*;
use crate::linux::nft::Present;

#[test]
fn elements_are_live_for_as_long_as_a_renewal_of_all_of_them_lasts() {
    let [two, three] = [2, 3].map(|host| Ipv4Addr::new(198, 51, 100, host));
    let now = Instant::now();
    let renewed = (BTreeSet::from([two]), now);
    let live =
        |peers: &[Ipv4Addr], at| are_live(Some(&renewed), &peers.iter().copied().collect(), at);
    assert!(live(&[two], now) && live(&[], now + LIFE));
    assert!(!live(&[two, three], now), "nobody renewed the third");
    assert!(!live(&[two], now + LIFE), "they may have expired");
    assert!(!are_live(None, &BTreeSet::from([two]), now));
    assert!(are_live(None, &BTreeSet::new(), now));
}

fn peer(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, host)
}

fn of(hosts: &[u8]) -> BTreeSet<Ipv4Addr> {
    hosts.iter().copied().map(peer).collect()
}

fn wanted(open_for: &[u8], allowed: &[u8]) -> Wanted {
    Wanted {
        open_for: of(open_for),
        allowed: Some(of(allowed)),
        reopens: false,
    }
}

/// Runs a test in a namespace whose ordinary table has only the sets.
fn with_both_tables(test: impl AsyncFnOnce(&kontena_lab::Netns, &FastPeers) + Send) {
    let (_keeper, netns) = kontena_lab::Keeper::start();
    for line in [
        "add table inet kontena",
        "add set inet kontena fast_peers { type ipv4_addr ; }",
        "add set inet kontena open { type inet_proto ; flags timeout ; }",
    ] {
        netns.run(&format!("nft {line}"));
    }
    netns.inside(|| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(async {
            let ruleset = Ruleset::here(&Handle::current()).unwrap();
            let fast_peers = FastPeers::of(ruleset);
            fast_peers.start_live(&BTreeSet::new()).await.unwrap();
            test(&netns, &fast_peers).await;
        });
    });
}

async fn access(fast_peers: &FastPeers) -> [(bool, BTreeSet<Ipv4Addr>); 2] {
    let read = |socket: &mut Socket| Ok(NAMES.map(|table| access::read(&socket.nftables, table)));
    let both = fast_peers.ruleset.change(read).await.unwrap();
    both.map(|access| access.unwrap())
        .map(|it| (it.open, it.peers))
}

async fn renewed(fast_peers: &FastPeers, wanted: Wanted) -> usize {
    let renewed = fast_peers.renew(move || wanted.clone(), LIFE);
    renewed.await.unwrap()
}

#[test]
fn a_renewal_lets_nobody_in_and_takes_out_who_may_not_pass() {
    with_both_tables(async |netns, fast_peers| {
        let renew = async |open_for: &[u8], allowed: &[u8]| {
            renewed(fast_peers, wanted(open_for, allowed)).await
        };
        assert_eq!(
            renew(&[2, 3], &[2, 3]).await,
            2,
            "the ordinary table is closed"
        );
        fast_peers.allow(&of(&[2, 3, 4])).await.unwrap();
        assert_eq!(renew(&[2, 3], &[2, 3, 4]).await, 0);
        assert!(fast_peers.are_live(&of(&[2, 3])));
        assert_eq!(
            access(fast_peers).await,
            [(); 2].map(|()| (true, of(&[2, 3, 4])))
        );
        // Four is no longer trusted, and somebody took two out of one table.
        netns.run("nft delete element inet kontena fast_peers { 198.51.100.2 }");
        assert_eq!(renew(&[2, 3], &[2, 3]).await, 1);
        assert!(!fast_peers.are_live(&of(&[2, 3])));
        assert_eq!(access(fast_peers).await, [(); 2].map(|()| (true, of(&[3]))));
        netns.run("nft delete element inet kontena open { udp }");
        assert_eq!(renew(&[3], &[3]).await, 1);
        // Both are closed, or a pass would find nothing to do.
        assert_eq!(
            access(fast_peers).await,
            [(); 2].map(|()| (false, of(&[3])))
        );
        assert!(!fast_peers.are_live(&of(&[3])));
        // Also where it is open for nobody, nobody stays who may not pass.
        assert_eq!(renew(&[], &[]).await, 0);
        assert_eq!(access(fast_peers).await, [(); 2].map(|()| (false, of(&[]))));
    });
}

#[test]
fn a_filter_that_has_closed_opens_for_nobody_but_whom_it_is_opened_for() {
    with_both_tables(async |netns, fast_peers| {
        fast_peers.allow(&of(&[2, 3])).await.unwrap();
        netns.run("nft delete element inet kontena open { udp }");
        fast_peers.allow(&of(&[3, 4])).await.unwrap();
        let [ordinary, live] = access(fast_peers).await;
        assert_eq!(ordinary, (true, of(&[3, 4])));
        assert_eq!(live, (true, of(&[2, 3, 4])));
        fast_peers.forbid(&of(&[2, 3, 9])).await.unwrap();
        assert_eq!(access(fast_peers).await, [(); 2].map(|()| (true, of(&[4]))));
    });
}

#[test]
fn a_renewal_may_open_what_has_closed_for_who_may_still_pass() {
    with_both_tables(async |netns, fast_peers| {
        fast_peers.allow(&of(&[2, 3])).await.unwrap();
        let before = fast_peers.ruleset.revision().await;
        let renew = async |open_for: &[u8], allowed: &[u8]| {
            let wanted = Wanted {
                reopens: true,
                ..wanted(open_for, allowed)
            };
            renewed(fast_peers, wanted).await
        };
        assert_eq!(renew(&[2, 3], &[2, 3]).await, 0);
        assert_eq!(
            fast_peers.ruleset.revision().await,
            before,
            "nothing has changed"
        );
        netns.run("nft delete element inet kontena open { udp }");
        let closed = fast_peers.ruleset.revision().await;
        assert_eq!(
            renew(&[2, 9], &[2, 9]).await,
            1,
            "a pass lets the other one in"
        );
        assert_ne!(
            fast_peers.ruleset.revision().await,
            closed,
            "it is listed anew"
        );
        assert_eq!(access(fast_peers).await, [(); 2].map(|()| (true, of(&[2]))));
        // Open for nobody is closed.
        netns.run("nft delete element inet kontena open { udp }");
        assert_eq!(renew(&[], &[2]).await, 0);
        assert_eq!(
            access(fast_peers).await,
            [(); 2].map(|()| (false, of(&[2])))
        );
    });
}

/// Each change of an element costs a notification, in a full grid 253 of them.
#[test]
fn a_renewal_changes_one_element_of_each_table() {
    let access = |open| Access {
        open,
        peers: of(&[2, 3]),
    };
    let both = NAMES.map(|table| (table, access(true)));
    let ((batch, effect), missing) = renewal(&both, &wanted(&[2, 3], &[2, 3]), LIFE);
    assert_eq!((batch.len(), missing), (4, 0));
    assert_eq!(effect, Effect::Renews(LIFE));
    let nobody_knows = Wanted::default();
    assert!(renewal(&both, &nobody_knows, LIFE).0.0.is_empty());
}

#[test]
fn what_changes_fast_peers_changes_no_other_table() {
    with_both_tables(async |netns, fast_peers| {
        let revision = async || fast_peers.ruleset.revision().await.unwrap();
        let before = revision().await;
        fast_peers.allow(&of(&[2, 3])).await.unwrap();
        let allowed = revision().await;
        assert_ne!(allowed.all, before.all);
        assert_eq!(allowed.other_tables, before.other_tables);
        // They pass already: the kernel counts nothing, and neither may we.
        fast_peers.allow(&of(&[3])).await.unwrap();
        assert_eq!(revision().await, allowed);
        fast_peers.forbid(&of(&[3])).await.unwrap();
        assert_eq!(revision().await.other_tables, before.other_tables);
        netns.run("nft add table netdev firewall");
        assert_ne!(revision().await.other_tables, before.other_tables);
    });
}

#[test]
fn the_kernel_tells_which_tables_are_there() {
    with_both_tables(async |netns, fast_peers| {
        netns.run("nft add table netdev firewall");
        let Present(tables) = fast_peers.ruleset.present().await;
        let all = [(1, KONTENA), (1, live_table::NAME), (5, "firewall")];
        let all = all.map(|(family, name)| (family, name.to_owned()));
        assert_eq!(tables, Some(all.into()));
    });
}

#[test]
fn renewals_know_what_the_tables_hold_until_somebody_or_the_clock_changes_it() {
    with_both_tables(async |netns, fast_peers| {
        let known = async || {
            let known = fast_peers.known.lock().unwrap().take();
            let generation = |socket: &mut Socket| socket.nftables.generation();
            let now = fast_peers.ruleset.change(generation).await.unwrap();
            let known = known.filter(|known| known.holds(&NAMES, now, Instant::now()))?;
            let all = known.accesses.into_iter();
            Some(all.map(|(_, it)| (it.open, it.peers)).collect::<Vec<_>>())
        };
        let is_known = async || known().await == Some(access(fast_peers).await.into());

        // The first one closes the live table.
        for _ in 0..2 {
            assert_eq!(renewed(fast_peers, wanted(&[], &[])).await, 0);
        }
        assert!(is_known().await, "closed, for nobody");
        fast_peers.allow(&of(&[2, 3])).await.unwrap();
        assert_eq!(known().await, None, "it was changed, and is read again");
        for _ in 0..2 {
            assert_eq!(renewed(fast_peers, wanted(&[2], &[2, 3])).await, 0);
        }
        let renewed_again = fast_peers.known.lock().unwrap().is_some();
        assert!(renewed_again && is_known().await, "open for two");
        renewed(fast_peers, wanted(&[2], &[2, 3])).await;
        netns.run("nft add table netdev firewall");
        assert_eq!(known().await, None, "somebody changed something");

        // What the clock closes is found closed, without a generation.
        let soon = Duration::from_millis(300);
        fast_peers
            .renew(|| wanted(&[2], &[2, 3]), soon)
            .await
            .unwrap();
        tokio::time::sleep(2 * soon).await;
        assert_eq!(renewed(fast_peers, wanted(&[2], &[2, 3])).await, 1);
    });
}
