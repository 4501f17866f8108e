//! Both tables in a real namespace.

use super::*;

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

/// A namespace with an ordinary table that has only the sets, and access to it.
async fn with_both_tables(netns: &kontena_lab::Netns) -> FastPeers {
    for line in [
        "add table inet kontena",
        "add set inet kontena fast_peers { type ipv4_addr ; }",
        "add set inet kontena open { type inet_proto ; flags timeout ; }",
    ] {
        netns.run(&format!("nft {line}"));
    }
    let fast_peers = FastPeers::here(&Handle::current()).unwrap();
    fast_peers.start_live(&BTreeSet::new()).await.unwrap();
    fast_peers
}

async fn access(fast_peers: &FastPeers) -> [(bool, BTreeSet<Ipv4Addr>); 2] {
    let socket = fast_peers.socket.lock().await;
    NAMES.map(|table| {
        let Access { open, peers } = socket.access(table).unwrap();
        (open, peers)
    })
}

async fn renewed(fast_peers: &FastPeers, wanted: Wanted) -> usize {
    let renewed = fast_peers.renew(move || wanted.clone(), LIFE);
    renewed.await.unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

#[test]
fn a_renewal_lets_nobody_in_and_takes_out_who_may_not_pass() {
    let (_keeper, netns) = kontena_lab::Keeper::start();
    let test = async {
        let fast_peers = with_both_tables(&netns).await;
        let renew = async |open_for: &[u8], allowed: &[u8]| {
            renewed(&fast_peers, wanted(open_for, allowed)).await
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
            access(&fast_peers).await,
            [(); 2].map(|()| (true, of(&[2, 3, 4])))
        );
        // Four is no longer trusted, and somebody took two out of one table.
        netns.run("nft delete element inet kontena fast_peers { 198.51.100.2 }");
        assert_eq!(renew(&[2, 3], &[2, 3]).await, 1);
        assert!(!fast_peers.are_live(&of(&[2, 3])));
        assert_eq!(
            access(&fast_peers).await,
            [(); 2].map(|()| (true, of(&[3])))
        );
        netns.run("nft delete element inet kontena open { udp }");
        assert_eq!(renew(&[3], &[3]).await, 1);
        // Both are closed, or a pass would find nothing to do.
        assert_eq!(
            access(&fast_peers).await,
            [(); 2].map(|()| (false, of(&[3])))
        );
        assert!(!fast_peers.are_live(&of(&[3])));
        // Also where it is open for nobody, nobody stays who may not pass.
        assert_eq!(renew(&[], &[]).await, 0);
        assert_eq!(
            access(&fast_peers).await,
            [(); 2].map(|()| (false, of(&[])))
        );
    };
    netns.inside(|| runtime().block_on(test));
}

#[test]
fn a_filter_that_has_closed_opens_for_nobody_but_whom_it_is_opened_for() {
    let (_keeper, netns) = kontena_lab::Keeper::start();
    let test = async {
        let fast_peers = with_both_tables(&netns).await;
        fast_peers.allow(&of(&[2, 3])).await.unwrap();
        netns.run("nft delete element inet kontena open { udp }");
        fast_peers.allow(&of(&[3, 4])).await.unwrap();
        let [ordinary, live] = access(&fast_peers).await;
        assert_eq!(ordinary, (true, of(&[3, 4])));
        assert_eq!(live, (true, of(&[2, 3, 4])));
        fast_peers.forbid(&of(&[2, 3, 9])).await.unwrap();
        assert_eq!(
            access(&fast_peers).await,
            [(); 2].map(|()| (true, of(&[4])))
        );
    };
    netns.inside(|| runtime().block_on(test));
}

#[test]
fn a_renewal_may_open_what_has_closed_for_who_may_still_pass() {
    let (_keeper, netns) = kontena_lab::Keeper::start();
    let test = async {
        let fast_peers = with_both_tables(&netns).await;
        fast_peers.allow(&of(&[2, 3])).await.unwrap();
        let before = fast_peers.revision().await;
        let renew = async |open_for: &[u8], allowed: &[u8]| {
            let wanted = Wanted {
                reopens: true,
                ..wanted(open_for, allowed)
            };
            renewed(&fast_peers, wanted).await
        };
        assert_eq!(renew(&[2, 3], &[2, 3]).await, 0);
        assert_eq!(fast_peers.revision().await, before, "nothing has changed");
        netns.run("nft delete element inet kontena open { udp }");
        let closed = fast_peers.revision().await;
        assert_eq!(
            renew(&[2, 9], &[2, 9]).await,
            1,
            "a pass lets the other one in"
        );
        assert_ne!(fast_peers.revision().await, closed, "it is listed anew");
        assert_eq!(
            access(&fast_peers).await,
            [(); 2].map(|()| (true, of(&[2])))
        );
        // Open for nobody is closed.
        netns.run("nft delete element inet kontena open { udp }");
        assert_eq!(renew(&[], &[2]).await, 0);
        assert_eq!(
            access(&fast_peers).await,
            [(); 2].map(|()| (false, of(&[2])))
        );
    };
    netns.inside(|| runtime().block_on(test));
}

/// Each change of an element costs a notification, in a full grid 253 of them.
#[test]
fn a_renewal_changes_one_element_of_each_table() {
    let access = |open| Access {
        open,
        peers: of(&[2, 3]),
    };
    let both = NAMES.map(|table| (table, access(true)));
    let (batch, effect, missing) = renewal(&both, &wanted(&[2, 3], &[2, 3]), LIFE);
    assert_eq!((batch.len(), missing), (4, 0));
    assert!(effect == Effect::Renews);
    let nobody_knows = Wanted::default();
    assert_eq!(renewal(&both, &nobody_knows, LIFE).0.len(), 0);
}

#[test]
fn what_changes_fast_peers_changes_no_other_table() {
    let (_keeper, netns) = kontena_lab::Keeper::start();
    let test = async {
        let fast_peers = with_both_tables(&netns).await;
        let revision = async || fast_peers.revision().await.unwrap();
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
    };
    netns.inside(|| runtime().block_on(test));
}

#[test]
fn the_kernel_tells_which_tables_are_there() {
    let (_keeper, netns) = kontena_lab::Keeper::start();
    let test = async {
        let fast_peers = with_both_tables(&netns).await;
        netns.run("nft add table netdev firewall");
        let Present(tables) = fast_peers.present().await;
        let all = [(1, KONTENA), (1, live_table::NAME), (5, "firewall")];
        let all = all.map(|(family, name)| (family, name.to_owned()));
        assert_eq!(tables, Some(all.into()));
    };
    netns.inside(|| runtime().block_on(test));
}
