//! The paths between hosts of all kinds, and the way from one path to another.

use kontena_schema::limits::VXLAN_PORT;
use kontena_schema::path::Path;

use super::host::{Host, Kind, MIXES, peer_report, reaches, settle, world};
use super::stream::{ends, nothing_in_clear, seen, streaming};
use kontena_overlay_lab::{grid, trusting, underlay};

#[test]
fn a_host_chooses_the_kernel_and_its_device_is_one_of_the_kernel() {
    let (_switch, hosts) = world(&grid(7, &[]), &[Kind::Kernel, Kind::Kernel]);
    for host in &hosts {
        let device = host.netns.run("ip -d -o link show kontena-wg");
        assert!(device.contains(" wireguard "), "{device}");
        let links = host.netns.run("ip -o link");
        assert!(!links.contains("kontena-tap"), "{links}");
        host.leave();
        let links = host.netns.run("ip -o link");
        assert!(!links.contains("kontena"), "{links}");
    }
}

#[test]
fn encrypted_paths_carry_everything_and_nothing_is_in_clear() {
    let closed = grid(7, &[]);
    for kinds in MIXES {
        let (switch, hosts) = world(&closed, &kinds);
        let all: Vec<&Host> = hosts.iter().collect();
        let [from, to] = ends(&hosts);
        for host in &hosts {
            reaches(&from.netns, host.node.address);
            reaches(&to.netns, host.node.address);
        }
        for [from, to] in [[&from, &to], [&to, &from]] {
            // The largest packets that there are, in both directions.
            from.netns
                .run(&format!("ping -n -c 1 -W 60 -M do -s 1342 {}", to.address));
            nothing_in_clear(&switch, || streaming(from, to, |stream| stream.goes_on()));
        }
        for host in &hosts {
            let counted =
                |(name, count): &(String, u64)| name.starts_with("dropped_") && *count > 0;
            let drops = host.drops().into_iter().filter(counted);
            assert_eq!(
                drops.collect::<Vec<_>>(),
                vec![],
                "{}, {kinds:?}",
                host.node.name
            );
        }
        assert_eq!(settle(&closed, &all), 0, "a second pass changes nothing");
    }
}

#[test]
fn trust_comes_and_goes_under_a_running_stream() {
    let closed = grid(7, &[]);
    for kinds in MIXES {
        let (switch, hosts) = world(&closed, &kinds);
        let all: Vec<&Host> = hosts.iter().collect();
        let [from, to] = ends(&hosts);
        streaming(&from, &to, |stream| {
            for _ in 0..2 {
                settle(&trusting(), &all);
                let seen = seen(&switch, || stream.goes_on());
                assert!(seen.marked.keys().eq([&VXLAN_PORT]), "{kinds:?}: {seen:?}");
                let path = peer_report(&trusting(), all[0], &all).path;
                assert_eq!(path, Path::Fast { to: underlay(2) });

                settle(&closed, &all);
                nothing_in_clear(&switch, || stream.goes_on());
                let path = peer_report(&closed, all[0], &all).path;
                assert_eq!(path, Path::Sealed { to: underlay(2) });
            }
        });
    }
}
