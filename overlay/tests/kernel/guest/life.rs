//! What ends without notice: the agent, the device, a part of it.

use kontena_lab::{Keeper, Netns, Switch};

use super::host::{Host, Kind, Known, finally, pass, reaches, settle, world};
use super::process::{self, Agent};
use super::stream::{ends, nothing_in_clear, streaming};
use kontena_overlay_lab::{grid, trusting};

/// What the kernel has of the overlay, as far as it says nothing of time.
fn shown(host: &Host) -> [String; 4] {
    let lines = [
        "ip -o link show kontena-wg",
        "ip -4 route show table all",
        "bridge fdb show dev kontena-vx",
        "wg show kontena-wg allowed-ips",
    ];
    lines.map(|line| host.netns.run(line))
}

/// The name of the next test.
const KILLED: &str = "guest::life::a_killed_agent_leaves_everything_to_its_successor";

#[test]
fn a_killed_agent_leaves_everything_to_its_successor() {
    process::be();
    let closed = grid(7, &[]);
    let (_switch, hosts) = world(&closed, &[Kind::Kernel, Kind::Kernel]);
    let all: Vec<&Host> = hosts.iter().collect();
    let [from, to] = ends(&hosts);
    let [a, _] = &hosts[..] else { unreachable!() };
    // From here on the first host's agent is a process.
    a.stop_agent();
    let agent = Agent::start(&a.netns, &Known::of(&closed, a, &all), KILLED);
    streaming(&from, &to, |stream| {
        stream.goes_on();
        let before = shown(a);
        agent.kill();
        stream.goes_on();
        assert_eq!(shown(a), before);
        a.start_agent();
        let steps = pass(&closed, a, &all).steps_applied;
        assert_eq!(
            steps, 4,
            "it remembers whose keys they are, receives heartbeats and path probes, and owns the live table"
        );
        settle(&closed, &all);
        assert_eq!(shown(a), before);
        stream.goes_on();
    });
}

/// The name of the next test.
const ENDED: &str = "guest::life::a_successor_opens_what_a_killed_agent_let_end";

/// Nobody renews the trust of a killed agent: the filter closes by itself, and its successor opens it.
#[test]
fn a_successor_opens_what_a_killed_agent_let_end() {
    process::be();
    let trusting = trusting();
    let (switch, hosts) = world(&trusting, &[Kind::Kernel, Kind::Kernel]);
    let all: Vec<&Host> = hosts.iter().collect();
    let [from, to] = ends(&hosts);
    let a = &hosts[0];
    a.stop_agent();
    let agent = Agent::start(&a.netns, &Known::of(&trusting, a, &all), ENDED);
    streaming(&from, &to, |stream| {
        stream.goes_on();
        agent.kill();
        finally("nobody is trusted any more", || {
            let set = a.netns.run("nft list set inet kontena open");
            if set.contains("elements") {
                Err(set)
            } else {
                Ok(())
            }
        });
        nothing_in_clear(&switch, || {
            a.netns
                .output(&format!("ping -c 3 -i 0.2 -W 1 {}", to.address));
        });
        a.start_agent();
        settle(&trusting, &all);
        stream.goes_on();
    });
}

/// Does this to the first host's device: nothing leaves in clear, and a pass mends it.
fn mended(switch: &Switch, hosts: &[Host], damage: &str) {
    let closed = grid(7, &[]);
    let all: Vec<&Host> = hosts.iter().collect();
    let [from, to] = ends(hosts);
    streaming(&from, &to, |stream| {
        stream.goes_on();
        nothing_in_clear(switch, || {
            hosts[0].netns.run(damage);
            let steps = settle(&closed, &all);
            assert!(steps > 0, "{damage}: nothing was noticed");
            stream.goes_on();
        });
    });
    assert_eq!(settle(&closed, &all), 0, "{damage}");
}

#[test]
fn a_device_that_is_taken_away_is_made_again() {
    for kinds in [[Kind::Kernel, Kind::Kernel], [Kind::Kernel, Kind::Sleeve]] {
        let (switch, hosts) = world(&grid(7, &[]), &kinds);
        let number = || {
            let link = hosts[0].netns.run("ip -o link show kontena-wg");
            link.split(':').next().unwrap().to_owned()
        };
        let before = number();
        mended(&switch, &hosts, "ip link del kontena-wg");
        assert_ne!(number(), before, "it is another one");
        mended(&switch, &hosts, "ip link set kontena-wg down");
    }
}

/// The filters that are hooked to a device end when it leaves its namespace, and the kernel tells nobody of them.
#[test]
fn a_device_that_was_elsewhere_has_its_filter_again() {
    let closed = grid(7, &[]);
    let (_switch, hosts) = world(&closed, &[Kind::Kernel, Kind::Kernel]);
    let all: Vec<&Host> = hosts.iter().collect();
    let [from, to] = ends(&hosts);
    let host = &hosts[0];
    let (_keeper, elsewhere) = Keeper::start();
    let filter = || host.netns.run("nft list table netdev kontena");
    assert!(filter().contains("hook ingress"), "{}", filter());
    let goes = |netns: &Netns, to: &Netns| {
        netns.run(&format!("ip link set kontena-vx netns {}", to.task()));
    };
    goes(&host.netns, &elsewhere);
    goes(&elsewhere, &host.netns);
    let steps = settle(&closed, &all);
    assert!(steps > 0, "nothing was noticed");
    assert!(filter().contains("hook ingress"), "{}", filter());
    reaches(&from.netns, to.address);
}

#[test]
fn a_device_that_somebody_changed_is_as_it_was_again() {
    let (switch, hosts) = world(&grid(7, &[]), &[Kind::Kernel, Kind::Kernel]);
    let peer = hosts[0].netns.run("wg show kontena-wg peers");
    let peer = peer.trim();
    hosts[0].netns.feed(
        "dd of=/run/other-key status=none",
        "b3RoZXIga2V5IG90aGVyIGtleSBvdGhlciBrZXkgb3Q=\n",
    );
    for damage in [
        "wg set kontena-wg listen-port 6799".to_owned(),
        "wg set kontena-wg private-key /run/other-key".to_owned(),
        format!("wg set kontena-wg peer {peer} remove"),
        format!("wg set kontena-wg peer {peer} allowed-ips 192.0.2.0/24"),
        "wg set kontena-wg peer b3RoZXIga2V5IG90aGVyIGtleSBvdGhlciBrZXkgb3Q= allowed-ips 192.0.2.0/24".to_owned(),
        "ip link set kontena-wg mtu 1300".to_owned(),
        "ip addr del 100.127.81.1/32 dev kontena-wg".to_owned(),
        "ip addr add 100.127.81.99/32 dev kontena-wg".to_owned(),
        "ip route del 100.127.81.0/24 dev kontena-wg".to_owned(),
        "ip route del unreachable 100.127.81.0/24 metric 4278191104".to_owned(),
        "nft flush chain inet kontena output".to_owned(),
    ] {
        mended(&switch, &hosts, &damage);
    }
    let [from, to] = ends(&hosts);
    reaches(&from.netns, to.address);
}
