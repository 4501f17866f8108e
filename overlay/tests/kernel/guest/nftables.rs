//! Debian's packet filter service, whose restart empties the kernel's whole rule set.

use std::net::UdpSocket;

use kontena_schema::agent::GridSettings;
use kontena_schema::limits::VXLAN_PORT;

use super::host::{Host, MIXES, finally, settle, world};
use super::stream::{ends, nothing_in_clear, streaming};
use kontena_overlay_lab::{grid, in_clear, trusting, underlay};

/// What `systemctl restart nftables` does (nftables.service of Debian): ExecStop, ExecStart. It takes ours, too, and the
/// agent makes another one.
fn restart(host: &Host) {
    // The first line has the number of the table. As JSON, Debian's nft would crash on the owner of the live table.
    let ours = || {
        let listed = host.netns.output("nft -a list table inet kontena");
        let listed = String::from_utf8(listed.stdout).unwrap();
        listed.lines().next().map(str::to_owned)
    };
    let before = finally("there is a packet filter", || {
        ours().ok_or("none".to_owned())
    });
    host.netns.run("/usr/sbin/nft flush ruleset");
    host.netns.run("/usr/sbin/nft -f /etc/nftables.conf");
    finally("the agent's is another one", || match ours() {
        Some(now) if now != before => Ok(()),
        now => Err(format!("{before}, {now:?}")),
    });
}

const STRANGERS: u64 = 2000;

/// Frames in clear from the second host, of a MAC that nobody has, are dropped by the first.
fn drops_strangers([a, b]: [&Host; 2]) {
    let stranger = [
        &[0xff; 6][..],
        &[0x02, 0, 0, 0, 0, 0x66],
        &[0x88, 0xb5],
        &[0; 46],
    ]
    .concat();
    let drops = || {
        let drops = a.drops();
        drops["dropped_in"] + drops["dropped_sender"]
    };
    let before = drops();
    let socket = b.netns.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    // Its own filter would stop it, and its agent would mend that.
    b.stop_agent();
    b.netns.run("nft delete table inet kontena");
    // Many more than what else is dropped where a host has no agent.
    for _ in 0..STRANGERS {
        let frame = in_clear(7, &stranger);
        socket.send_to(&frame, (underlay(1), VXLAN_PORT)).unwrap();
    }
    finally("they are dropped", || match drops() - before {
        STRANGERS.. => Ok(()),
        fewer => Err(fewer.to_string()),
    });
}

/// The service restarts on both hosts; their agents notice and put everything back.
fn restart_everywhere(grid: &GridSettings, all: &[&Host]) {
    all.iter().for_each(|host| restart(host));
    settle(grid, all);
    for host in all {
        let rules = host.netns.run("nft list ruleset");
        let both = ["table inet filter", "dropped_in", "dropped_sender"];
        assert!(both.iter().all(|name| rules.contains(name)), "{rules}");
    }
}

#[test]
fn a_restart_of_the_filter_service_shows_nothing_and_breaks_nothing() {
    let closed = grid(7, &[]);
    for kinds in MIXES {
        let (switch, hosts) = world(&closed, &kinds);
        let all: Vec<&Host> = hosts.iter().collect();
        let [from, to] = ends(&hosts);
        streaming(&from, &to, |stream| {
            nothing_in_clear(&switch, || {
                stream.goes_on();
                restart_everywhere(&closed, &all);
                stream.goes_on();
            });
            settle(&trusting(), &all);
            restart_everywhere(&trusting(), &all);
            stream.goes_on();
        });
        let [a, b] = &hosts[..] else { unreachable!() };
        drops_strangers([a, b]);
    }
}
