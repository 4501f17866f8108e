//! The packet filter while something hangs, ends, or takes it away.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kontena_overlay::{Disturbance, Membership, OverlayState, Request, task};
use kontena_overlay_lab::{
    BOUND, Host, converge, count, counted, dropped, eventually, forger, grid, intent,
    remove_filter, trusting, underlay, world,
};
use kontena_schema::agent::GridSettings;
use kontena_schema::ids::Revision;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::sync::watch;

use crate::isolation::{MARKER, foreign_frame};

/// How long clear packets pass without a renewal.
const OPEN_FOR: Duration = Duration::from_secs(4);

/// Hosts 1 and 2 may be clear to each other, and no other.
fn narrow() -> GridSettings {
    grid(7, &["198.51.100.1/32", "198.51.100.2/32"])
}

fn elements(host: &Host, table: &str, set: &str) -> Vec<serde_json::Value> {
    let listed = format!("nft -j list set inet {table} {set}");
    let listed: serde_json::Value = serde_json::from_str(&host.netns.run(&listed)).unwrap();
    let objects = listed["nftables"].as_array().unwrap().iter();
    let elements = objects.filter_map(|object| object["set"]["elem"].as_array());
    elements.flatten().cloned().collect()
}

/// For whom a table is open, and for how many seconds; for nobody if it is closed.
fn fast_peers(host: &Host, table: &str) -> Vec<(String, u64)> {
    let open = elements(host, table, "open");
    let Some(left_s) = open.first().and_then(|udp| udp["elem"]["expires"].as_u64()) else {
        return Vec::new();
    };
    let peers = elements(host, table, "fast_peers").into_iter();
    let open = |peer: serde_json::Value| (peer.as_str().unwrap().to_owned(), left_s);
    peers.map(open).collect()
}

fn both_tables(host: &Host) -> Vec<(String, u64)> {
    ["kontena", "kontena-live"]
        .iter()
        .flat_map(|table| fast_peers(host, table))
        .collect()
}

fn until_closed(host: &Host) {
    eventually("it is closed", || match both_tables(host) {
        open if open.is_empty() => Ok(()),
        open => Err(format!("{open:?}")),
    });
}

/// An `nft` that hangs while a file is there; only the host's agent runs it.
struct HangingNft {
    folder: PathBuf,
}

impl HangingNft {
    fn of(host: &Host) -> Self {
        let name = format!("kontena-hanging-nft-{}", host.netns.task());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::copy("/usr/sbin/nft", folder.join("nft")).unwrap();
        let here = folder.display();
        let script = format!(
            "#!/bin/sh\n[ -e {here}/hang ] && exec sleep infinity\nexec {here}/nft \"$@\"\n"
        );
        let program = folder.join("script");
        fs::write(&program, script).unwrap();
        host.netns.run(&format!("chmod 755 {}", program.display()));
        host.restart_agent_in(move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none).unwrap();
            let over = Path::new("/usr/sbin/nft");
            mount(Some(&program), over, none, MsFlags::MS_BIND, none).unwrap();
        });
        Self { folder }
    }

    fn hang(&self) {
        fs::write(self.folder.join("hang"), "").unwrap();
    }

    /// The same, and the next pass has something to list.
    fn hang_next_pass(&self, host: &Host) {
        host.netns.run("nft add table inet firewall");
        self.hang();
    }

    fn go_on(&self) {
        fs::remove_file(self.folder.join("hang")).unwrap();
    }
}

impl Drop for HangingNft {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn overlay_closes_for_a_peer_whose_trust_is_withdrawn_while_a_pass_hangs() {
    let (_switch, hosts) = world(2, &trusting());
    let [a, b] = &hosts[..] else { unreachable!() };
    let nft = HangingNft::of(a);
    converge(&trusting(), &[a, b]);
    assert_eq!(both_tables(a).len(), 2);
    a.containers[0].netns.must_reach(b.containers[0].address);

    nft.hang_next_pass(a);
    let hangs = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let pass = scope.spawn(|| {
            let report = a.reconcile(&intent(&grid(7, &[]), a, &[a, b]));
            hangs.store(false, Ordering::Release);
            report
        });
        until_closed(a);
        count(&b.netns, "eth0", "udp dport 6784");
        count(&a.containers[0].netns, "ethwe", MARKER);
        let before = dropped(a, "dropped_in");
        forger(b, trusting().vni)(1, &foreign_frame());
        eventually("the stranger's frame is dropped", || {
            let now = dropped(a, "dropped_in");
            (now > before).then_some(()).ok_or(now.to_string())
        });
        assert!(a.containers[0].netns.ping(b.containers[0].address).is_err());
        assert!(
            hangs.load(Ordering::Acquire),
            "the pass hangs all the while"
        );
        assert_eq!(counted(&b.netns), 0, "nothing left in clear");
        assert_eq!(counted(&a.containers[0].netns), 0, "nothing came in");
        let report = pass.join().unwrap();
        assert!(!report.errors.is_empty(), "it was given up");
    });
}

#[test]
fn overlay_closes_for_one_peer_and_stays_open_for_another_while_a_pass_hangs() {
    let (_switch, hosts) = world(3, &trusting());
    let [a, b, _] = &hosts[..] else {
        unreachable!()
    };
    let all: Vec<&Host> = hosts.iter().collect();
    let nft = HangingNft::of(a);
    converge(&trusting(), &all);
    assert_eq!(both_tables(a).len(), 4);
    nft.hang_next_pass(a);
    let hangs = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let pass = scope.spawn(|| {
            let report = a.reconcile(&intent(&narrow(), a, &all));
            hangs.store(false, Ordering::Release);
            report
        });
        let second = underlay(2).to_string();
        eventually("the third is out of both tables", || {
            match &both_tables(a)[..] {
                [(one, _), (other, _)] if *one == second && *other == second => Ok(()),
                open => Err(format!("{open:?}")),
            }
        });
        assert!(hangs.load(Ordering::Acquire), "the pass hangs meanwhile");
        a.containers[0].netns.must_reach(b.containers[0].address);
        assert!(!pass.join().unwrap().errors.is_empty(), "it was given up");
    });
}

#[test]
fn overlay_stays_open_for_who_is_trusted_while_a_pass_hangs() {
    let (_switch, hosts) = world(2, &trusting());
    let [a, b] = &hosts[..] else { unreachable!() };
    let nft = HangingNft::of(a);
    converge(&trusting(), &[a, b]);
    nft.hang_next_pass(a);
    count(&b.netns, "eth0", "udp dport 6784");
    let hangs = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let began = Instant::now();
        let pass = scope.spawn(|| {
            let report = a.reconcile(&intent(&trusting(), a, &[a, b]));
            hangs.store(false, Ordering::Release);
            report
        });
        let mut pings = 0;
        while hangs.load(Ordering::Acquire) {
            a.containers[0].netns.must_reach(b.containers[0].address);
            pings += 1;
        }
        assert!(!pass.join().unwrap().errors.is_empty(), "it was given up");
        assert!(began.elapsed() > OPEN_FOR, "it hung for long");
        assert!(counted(&b.netns) >= pings, "they are clear");
        assert_eq!(both_tables(a).len(), 2);
    });
}

#[test]
fn overlay_lists_its_tables_only_if_something_has_changed() {
    let (_switch, hosts) = world(2, &trusting());
    let [a, b] = &hosts[..] else { unreachable!() };
    let nft = HangingNft::of(a);
    converge(&trusting(), &[a, b]);
    let pass = || a.reconcile(&intent(&trusting(), a, &[a, b]));
    let first = pass();
    assert_eq!((first.steps_applied, first.errors.len()), (0, 0));

    // As long as it is open without a renewal: that time has to pass, for nothing tells of a
    // renewal, and what is open afterwards was renewed.
    std::thread::sleep(OPEN_FOR);
    assert_eq!(both_tables(a).len(), 2);
    nft.hang();
    let undisturbed = pass();
    assert_eq!(
        (undisturbed.steps_applied, undisturbed.errors.len()),
        (0, 0)
    );
    a.netns.run("nft add table inet firewall");
    assert!(!pass().errors.is_empty(), "it asks nft");
    nft.go_on();
    assert!(pass().errors.is_empty());

    // The filter closes, and the kernel tells nobody.
    a.agent().0.permit(None);
    until_closed(a);
    assert!(pass().errors.is_empty());
    assert_eq!(both_tables(a).len(), 2);
}

#[test]
fn overlay_opens_what_has_closed_without_a_pass() {
    let (_switch, hosts) = world(2, &trusting());
    let [a, b] = &hosts[..] else { unreachable!() };
    converge(&trusting(), &[a, b]);
    // As the clock does it for a process that got no processor.
    a.netns.run("nft delete element inet kontena open { udp }");
    eventually("it is open again", || match both_tables(a).len() {
        2 => Ok(()),
        open => Err(format!("{open} tables are open")),
    });
    a.containers[0].netns.must_reach(b.containers[0].address);
}

#[test]
fn overlay_closes_soon_after_its_agent_is_killed_and_late_after_it_was_stopped() {
    let (_switch, hosts) = world(2, &trusting());
    let [a, b] = &hosts[..] else { unreachable!() };
    let left = |host: &Host| match &fast_peers(host, "kontena")[..] {
        [(_, left_s)] => Some(*left_s),
        _ => None,
    };
    a.outlive();
    a.stop_agent();
    let left_s = left(a).expect("it stays open");
    assert!(left_s > 30, "{left_s} s are left");
    let killed = left(b).expect("it is open");
    assert!(killed < 5, "{killed} s are left at any time");
    b.stop_agent();
    eventually("it is closed", || match left(b) {
        None => Ok(()),
        Some(left_s) => Err(format!("{left_s} s are left")),
    });
    // A successor adopts what is open.
    a.start_agent();
    a.agent().0.permit(Some(&intent(&trusting(), a, &[a, b])));
    eventually("it is renewed for as long as any agent does", || {
        let left_s = left(a).expect("it stays open");
        (left_s < 5).then_some(()).ok_or(format!("{left_s} s"))
    });
}

/// The overlay's own task on a host, asked for what the grid has.
fn start_task(host: &Host, all: &[&Host]) -> (watch::Sender<Arc<Request>>, kontena_task::Task) {
    let own = intent(&narrow(), host, all);
    let request = Request {
        attachments: own.attachments.clone(),
        keys: own.keys.clone(),
        egress: own.egress.clone(),
        grid: Membership::Member {
            revision: Revision(1),
            grid: Arc::new(own),
        },
        ..Request::default()
    };
    let (request_in, request) = watch::channel(Arc::new(request));
    let (state, _) = watch::channel(Arc::<OverlayState>::default());
    let (overlay, runtime) = host.agent();
    let _inside = runtime.enter();
    let converging = task::run(overlay, request, state);
    (request_in, kontena_task::spawn("overlay", converging))
}

/// A stream of numbers between two containers that never rests, until it is told to.
fn stream(from: &Host, to: &Host, until: &AtomicBool) {
    let (from, to) = (&from.containers[0], &to.containers[0]);
    let listener = to
        .netns
        .inside(|| TcpListener::bind((to.address, 7000)))
        .unwrap();
    let mut sender = from
        .netns
        .inside(|| TcpStream::connect((to.address, 7000)))
        .unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    receiver.set_read_timeout(Some(BOUND)).unwrap();
    let mut number = 0_u64;
    while !until.load(Ordering::Acquire) {
        sender.write_all(&number.to_be_bytes()).unwrap();
        let mut read = [0; 8];
        receiver.read_exact(&mut read).unwrap();
        assert_eq!(u64::from_be_bytes(read), number);
        number += 1;
    }
    assert!(number > 0);
}

#[test]
fn overlay_mends_its_packet_filter_after_a_flush_and_is_closed_meanwhile() {
    let (_switch, hosts) = world(3, &narrow());
    let all: Vec<&Host> = hosts.iter().collect();
    let [a, b, outside] = all[..] else {
        unreachable!()
    };
    count(&a.containers[0].netns, "ethwe", MARKER);
    remove_filter(outside);
    let forge = forger(outside, narrow().vni);
    let _task = start_task(a, &all);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| stream(a, b, &done));
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                forge(1, &foreign_frame());
            }
        });
        for _ in 0..3 {
            a.netns.run("nft flush ruleset");
            eventually("it is mended", || {
                let listed = a.netns.output("nft list table inet kontena").status;
                let sender = a.netns.output("nft list table netdev kontena").status;
                let both = listed.success() && sender.success();
                both.then_some(()).ok_or("not yet".to_owned())
            });
        }
        done.store(true, Ordering::Release);
    });
    assert_eq!(counted(&a.containers[0].netns), 0, "nothing came in");
    let open: BTreeSet<_> = both_tables(a).into_iter().map(|(peer, _)| peer).collect();
    assert_eq!(open, ["198.51.100.2".to_owned()].into());

    // Without either table it would have come in: the counter can see it.
    remove_filter(a);
    a.netns.run("nft delete table netdev kontena");
    forge(1, &foreign_frame());
    eventually("the marker is seen", || {
        match counted(&a.containers[0].netns) {
            0 => Err("not seen".to_owned()),
            _ => Ok(()),
        }
    });
}

#[test]
fn overlay_is_woken_once_by_a_burst_and_not_by_what_others_do_to_theirs() {
    let (_switch, hosts) = world(1, &trusting());
    let host = &hosts[0];
    let (overlay, runtime) = host.agent();
    let wait = |bound| {
        let changed = async { tokio::time::timeout(bound, overlay.disturbed()).await };
        runtime.block_on(changed).is_ok()
    };
    // What the agent itself wrote.
    while wait(Duration::from_secs(1)) {}
    for number in 0..50 {
        host.netns.run(&format!("nft add table ip other{number}"));
        host.netns
            .run(&format!("nft delete table ip other{number}"));
    }
    host.netns.run("nft flush chain inet kontena input");
    host.netns.run("nft delete table netdev kontena");
    host.netns.run("nft delete table inet kontena");
    assert!(wait(BOUND), "it is noticed");
    host.netns.run("nft add table ip last");
    host.netns.run("nft delete table ip last");
    assert!(!wait(Duration::from_secs(1)), "all of it was one event");
}

#[test]
fn overlay_is_woken_by_a_device_that_is_removed_and_not_by_those_of_others() {
    let (_switch, hosts) = world(1, &grid(7, &[]));
    let [host] = &hosts[..] else { unreachable!() };
    let (overlay, runtime) = host.agent();
    let wait = |bound| {
        let disturbed = async { tokio::time::timeout(bound, overlay.disturbed()).await };
        runtime.block_on(disturbed).is_ok()
    };
    host.netns.run("ip link add other type bridge");
    host.netns.run("ip link del other");
    assert!(!wait(Duration::from_secs(1)), "it is not ours");
    for device in ["kontena", "kontena-vx"] {
        host.netns.run(&format!("ip link del {device}"));
        assert!(wait(BOUND), "{device}");
    }
}

/// A renewal lets nobody in.
#[test]
fn overlay_renews_nobody_who_was_taken_out() {
    let (_switch, hosts) = world(3, &trusting());
    let a = &hosts[0];
    let out = underlay(3);
    a.netns.run(&format!(
        "nft delete element inet kontena fast_peers {{ {out} }}"
    ));
    let left = |peer: Ipv4Addr| {
        let mut open = fast_peers(a, "kontena").into_iter();
        let found = open.find(|(open, _)| *open == peer.to_string());
        found.map(|(_, left_s)| left_s)
    };
    // Seconds that are left grow only where it is renewed.
    let (mut before, mut renewed) = (u64::MAX, 0);
    eventually("the other one is renewed, and again", || {
        let now = left(underlay(2)).expect("it stays open");
        renewed += usize::from(now > before);
        before = now;
        (renewed > 2)
            .then_some(())
            .ok_or(format!("{renewed} times"))
    });
    assert_eq!(left(out), None);
    // A pass is asked for, and opens it.
    let (overlay, runtime) = a.agent();
    let woken = async { tokio::time::timeout(BOUND, overlay.disturbed()).await };
    let woken = runtime.block_on(woken).expect("a pass is due");
    assert_eq!(woken, Disturbance::Closed);
    let all: Vec<&Host> = hosts.iter().collect();
    converge(&trusting(), &all);
    assert!(left(out).is_some());
}
