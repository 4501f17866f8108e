//! A bad underlay.

use kontena_lab::Switch;

use super::host::{Host, MIXES, finally, settle, world};
use super::stream::{ends, nothing_in_clear, streaming};
use kontena_overlay_lab::{grid, trusting};

/// What the emulated wire of each host does with what the host sends.
fn spoil(switch: &Switch, how: &str) {
    for port in ["port1", "port2"] {
        switch
            .netns
            .run(&format!("tc qdisc replace dev {port} root netem {how}"));
    }
}

#[test]
fn a_stream_outlives_loss_and_delay_and_a_change_of_paths_meanwhile() {
    const DELAY_MS: u32 = 30;
    let closed = grid(7, &[]);
    for kinds in MIXES {
        let (switch, hosts) = world(&closed, &kinds);
        let all: Vec<&Host> = hosts.iter().collect();
        let [from, to] = ends(&hosts);
        spoil(&switch, &format!("delay {DELAY_MS}ms 10ms loss 3%"));
        streaming(&from, &to, |stream| {
            nothing_in_clear(&switch, || stream.goes_on());
            settle(&trusting(), &all);
            stream.goes_on();
            settle(&closed, &all);
            nothing_in_clear(&switch, || stream.goes_on());
        });
        // Both are measured: no answer comes sooner than the wire is long, and some do not come.
        spoil(&switch, &format!("delay {DELAY_MS}ms loss 30%"));
        for host in &hosts {
            finally("loss and delay are measured", || {
                let health = host.health().into_values().next().expect("a peer");
                let late = health
                    .round_trip
                    .is_some_and(|time| time.as_millis() >= u128::from(DELAY_MS));
                let lossy = health.loss.is_some_and(|loss| loss > 0.0);
                (late && lossy).then_some(()).ok_or(format!("{health:?}"))
            });
        }
    }
}

#[test]
fn a_wire_that_was_cut_carries_everything_again() {
    let closed = grid(7, &[]);
    for kinds in MIXES {
        let (switch, hosts) = world(&closed, &kinds);
        let all: Vec<&Host> = hosts.iter().collect();
        let [from, to] = ends(&hosts);
        streaming(&from, &to, |stream| {
            stream.goes_on();
            nothing_in_clear(&switch, || {
                spoil(&switch, "loss 100%");
                finally("the peers are silent", || {
                    let peers = all.iter().flat_map(|host| host.peers().into_values());
                    let mut alive = peers.filter(|peer| peer.alive);
                    alive.next().map_or(Ok(()), |peer| Err(format!("{peer:?}")))
                });
                spoil(&switch, "loss 0%");
                settle(&closed, &all);
                stream.goes_on();
            });
        });
    }
}
