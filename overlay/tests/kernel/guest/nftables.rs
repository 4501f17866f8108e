//! Debian's packet filter service, whose restart empties the kernel's whole rule set.

use std::net::UdpSocket;

use kontena_schema::agent::GridSettings;
use kontena_schema::limits::VXLAN_PORT;
use serde_json::Value;

use super::host::{Host, MIXES, finally, settle, world};
use super::stream::{ends, nothing_in_clear, streaming};
use kontena_overlay_lab::{grid, in_clear, trusting, underlay};

/// What `systemctl restart nftables` does (nftables.service of Debian): ExecStop, ExecStart. It takes ours, too, and the
/// agent makes another one.
fn restart(host: &Host) {
    let ours = || {
        let tables: Value = serde_json::from_str(&host.netns.run("nft -j list tables")).unwrap();
        let mut tables = tables["nftables"]
            .as_array()
            .unwrap()
            .iter()
            .map(|object| &object["table"]);
        let ours = tables.find(|table| table["family"] == "inet" && table["name"] == "kontena");
        ours?["handle"].as_u64()
    };
    let before = ours();
    assert!(before.is_some(), "there is a packet filter");
    host.netns.run("/usr/sbin/nft flush ruleset");
    host.netns.run("/usr/sbin/nft -f /etc/nftables.conf");
    finally("the agent's is another one", || match ours() {
        Some(now) if Some(now) != before => Ok(()),
        now => Err(format!("{before:?}, {now:?}")),
    });
}

/// A frame in clear from the second host, of a MAC that nobody has, is dropped by the first.
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
    socket
        .send_to(&in_clear(7, &stranger), (underlay(1), VXLAN_PORT))
        .unwrap();
    finally("it is dropped", || match drops() - before {
        1 => Ok(()),
        other => Err(other.to_string()),
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
