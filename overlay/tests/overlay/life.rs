//! Containers, peers, the agent and the grid: how they come, change and go.

use std::net::Ipv4Addr;
use std::process::Stdio;

use kontena_overlay::Process;
use kontena_schema::ids::LeaseNumber;

use crate::isolation::foreign_frame;
use crate::reach::everyone_reaches_everyone;
use kontena_overlay_lab::{
    Container, Host, Start, Switch, converge, dropped, eventually, forger, grid, intent, pass,
    trusting, world, world_of,
};

/// Everything on a host that an overlay could leave behind.
pub fn traces(host: &Host) -> String {
    let commands = [
        "ip -o link",
        "ip -o -4 addr",
        "ip route show table all",
        "ip neigh",
        "bridge fdb",
        "nft list tables",
        "iptables -S",
    ];
    let shown = commands.map(|command| host.netns.run(command));
    // The underlay's neighbours are not ours.
    let lines = shown.iter().flat_map(|text| text.lines());
    lines
        .filter(|line| !line.contains("lladdr"))
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
fn overlay_leaves_nothing_when_the_host_leaves_the_grid() {
    let switch = Switch::start();
    let mut host = Host::start(&switch, 1);
    let other = Host::start(&switch, 2);
    host.add_container(1);
    host.netns.run("iptables -P FORWARD ACCEPT");
    host.netns.run("nft list ruleset");
    let before = traces(&host);
    host.must_reconcile(&intent(&trusting(), &host, &[&host, &other]));
    assert!(traces(&host).contains("kontena-vx"));
    assert!(host.remove_all().is_empty());
    // iptables keeps its empty tables once they were used.
    let tables = |text: &str| -> String {
        text.lines()
            .filter(|l| !l.starts_with("table ip "))
            .map(|l| format!("{l}\n"))
            .collect()
    };
    assert_eq!(tables(&before), tables(&traces(&host)));
    let link = host.containers[0].netns.output("ip link show ethwe");
    assert!(!link.status.success(), "ethwe is gone too");
    assert!(
        host.remove_all().is_empty(),
        "removing nothing is not an error"
    );
}

#[test]
fn overlay_removes_a_vanished_service_on_every_host() {
    let (_switch, mut hosts) = world(2, &trusting());
    let gone = hosts[1].containers.remove(0);
    let mac = gone.attachment().mac.to_string();
    let mentions = |host: &Host| {
        let text = traces(host) + &host.netns.run("ip neigh") + &host.netns.run("bridge fdb");
        text.contains(&mac) || text.contains("10.81.1.2") || text.contains("vethwe2")
    };
    assert!(hosts.iter().all(mentions));
    // The container still runs: the agent learned of it first.
    converge(&trusting(), &hosts.iter().collect::<Vec<_>>());
    assert!(!hosts.iter().any(mentions));
    assert!(!gone.netns.output("ip link show ethwe").status.success());
}

#[test]
fn overlay_attaches_a_restarted_container_and_a_new_lease() {
    let (_switch, mut hosts) = world(2, &trusting());
    let address = hosts[1].containers[0].address;
    // A restart: the same placement and lease in a new process. The old host end may still be there
    // when the agent reads the state.
    hosts[1].containers[0] = Container::start(2, address);
    converge(&trusting(), &hosts.iter().collect::<Vec<_>>());
    hosts[0].containers[0].netns.must_reach(address);

    // A new lease of the same address has another MAC, in a new container.
    let old = hosts[1].containers[0].attachment().mac;
    hosts[1].containers[0] = Container::start(2, address);
    hosts[1].containers[0].lease = LeaseNumber(99);
    let new = hosts[1].containers[0].attachment().mac;
    assert_ne!(old, new);
    let all: Vec<&Host> = hosts.iter().collect();
    converge(&trusting(), &all);
    let link = hosts[1].containers[0].netns.run("ip -o link show ethwe");
    assert!(link.contains(&new.to_string()), "{link}");
    let known = hosts[0].netns.run("ip neigh show dev kontena");
    assert!(
        known.contains(&new.to_string()) && !known.contains(&old.to_string()),
        "{known}"
    );
    hosts[0].containers[0].netns.must_reach(address);
    assert_eq!(converge(&trusting(), &all), 0);
}

#[test]
fn overlay_reports_a_container_that_cannot_be_attached_and_attaches_the_others() {
    let (_switch, mut hosts) = world(1, &trusting());
    hosts[0].add_container(11);
    hosts[0].add_container(12);
    let host = &hosts[0];
    let mut intent = intent(&trusting(), host, &[host]);
    let [_, dead, shared] = &host.containers[..] else {
        unreachable!()
    };
    intent
        .attachments
        .as_mut()
        .unwrap()
        .get_mut(&dead.placement)
        .unwrap()
        .process
        .pid = i32::MAX;
    // A container in the host's namespace must never get an interface.
    intent
        .attachments
        .as_mut()
        .unwrap()
        .get_mut(&shared.placement)
        .unwrap()
        .process = Process::of(host.netns.task()).unwrap();
    let report = host.reconcile(&intent);
    assert_eq!(report.errors.len(), 2, "{:?}", report.errors);
    let why = |placement| report.attached[placement].clone().unwrap_err();
    assert!(
        why(&dead.placement).contains("No such file"),
        "{}",
        why(&dead.placement)
    );
    assert!(
        why(&shared.placement).contains("shares the network namespace"),
        "{}",
        why(&shared.placement)
    );
    assert!(report.attached[&host.containers[0].placement].is_ok());
    assert!(!host.netns.output("ip link show ethwe").status.success());
}

#[test]
fn overlay_gives_a_process_nothing_that_has_only_the_number_of_a_container() {
    let (_switch, mut hosts) = world(1, &trusting());
    // Other tests start processes, too.
    let (placement, attachment, another) = eventually("the number is given again", || {
        let ended = hosts[0].containers.pop();
        let ended = ended.unwrap_or_else(|| Container::start(1, Ipv4Addr::new(10, 81, 1, 1)));
        let (placement, attachment) = (ended.placement, ended.attachment());
        drop(ended);
        let another = with_number(attachment.process.pid).ok_or("somebody else has it")?;
        Ok((placement, attachment, another))
    });
    let host = &hosts[0];
    let mut intent = intent(&trusting(), host, &[host]);
    intent.attachments = Some([(placement, attachment.clone())].into());
    assert_ne!(another.attachment().process, attachment.process);
    let report = host.reconcile(&intent);
    let why = report.attached[&placement].clone().unwrap_err();
    assert!(why.contains("its PID was reused"), "{why}");
    let link = another.netns.output("ip link show ethwe");
    assert!(!link.status.success(), "{link:?}");
}

/// A container whose first process has this number, unless others were given it first.
fn with_number(pid: i32) -> Option<Container> {
    let mut tries = (0..100).map(|_| {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        Container::start(12, Ipv4Addr::new(10, 81, 1, 12))
    });
    tries.find(|container| container.attachment().process.pid == pid)
}

#[test]
fn overlay_removes_every_clear_entry_when_trust_ends_and_adds_them_again_with_it() {
    let (_switch, hosts) = world(2, &trusting());
    let all: Vec<&Host> = hosts.iter().collect();
    let [a, b] = &hosts[..] else { unreachable!() };
    let (from, to) = (&a.containers[0].netns, b.containers[0].address);
    from.must_reach(to);
    converge(&grid(7, &[]), &all);
    let left = a.netns.run("bridge fdb show dev kontena-vx");
    assert!(!left.contains("dst"), "{left}");
    let encrypted = a.netns.run("bridge fdb show dev kontena-tap");
    let mac = b.containers[0].attachment().mac.to_string();
    assert!(encrypted.contains(&mac), "{encrypted}");
    // Where it has closed already, nobody needs to be taken out.
    let [open, peers] =
        ["open", "fast_peers"].map(|set| a.netns.run(&format!("nft list set inet kontena {set}")));
    let is_open = open.contains("elements") && peers.contains("198.51.100");
    assert!(!is_open, "{open}{peers}");
    from.must_reach(to);
    converge(&trusting(), &all);
    let left = a.netns.run("bridge fdb show dev kontena-tap");
    assert!(!left.contains(&mac), "{left}");
    from.must_reach(to);
}

#[test]
fn overlay_is_rebuilt_for_another_grid() {
    let (_switch, hosts) = world(2, &trusting());
    let all: Vec<&Host> = hosts.iter().collect();
    let other = grid(8, &["198.51.100.0/24"]);
    converge(&other, &all);
    let tunnel = hosts[0].netns.run("ip -d -o link show kontena-vx");
    assert!(tunnel.contains("vxlan id 8 "), "{tunnel}");
    hosts[0].containers[0]
        .netns
        .must_reach(hosts[1].containers[0].address);
    assert_eq!(converge(&other, &all), 0);
}

#[test]
fn overlay_recreates_the_vxlan_device_of_an_older_version() {
    let starts: [Start; 2] = [Host::start, Host::start_with_wireguard];
    for start in starts {
        let (_switch, hosts) = world_of(&[start, start], &trusting());
        let [a, b] = &hosts[..] else { unreachable!() };
        let tunnel = || a.netns.run("ip -d -o link show kontena-vx");
        a.stop_agent();
        a.netns.run("ip link del kontena-vx");
        a.netns.run(
            "ip link add kontena-vx mtu 1370 type vxlan id 7 dstport 6784 nolearning noudpcsum",
        );
        a.netns.run("ip link set kontena-vx master kontena up");
        assert!(!tunnel().contains(" proxy "));
        a.start_agent();
        converge(&trusting(), &[a, b]);
        assert!(tunnel().contains(" proxy "), "{}", tunnel());
        everyone_reaches_everyone(&hosts);
        // It is protected like the old one.
        let before = dropped(a, "dropped_sender");
        forger(b, trusting().vni)(1, &foreign_frame());
        eventually("the drop is counted", || {
            match dropped(a, "dropped_sender") - before {
                1 => Ok(()),
                count => Err(count.to_string()),
            }
        });
    }
}

#[test]
fn overlay_repairs_damage_and_nothing_else() {
    let (_switch, hosts) = world(2, &trusting());
    let all: Vec<&Host> = hosts.iter().collect();
    let host = &hosts[0];
    let tunnel = || host.netns.run("ip -o link show kontena-vx");
    let before = tunnel();
    let damages = [
        "nft flush chain inet kontena input",
        "nft delete table inet kontena",
        "nft delete table netdev kontena",
        "nft flush chain netdev kontena ingress",
        "nft add rule netdev kontena ingress accept",
        "nft flush set netdev kontena senders",
        "nft add element netdev kontena senders { 02:00:00:00:00:77 }",
        "nft add set netdev kontena holders { type ether_addr . ipv4_addr ; }",
        "ip link set kontena down",
        "ip link set kontena address 02:00:00:00:00:01",
        "ip link set kontena type bridge stp_state 1",
        "ip link set kontena type bridge mcast_snooping 1",
        "ip addr add 10.81.0.99/17 dev kontena",
        "ip addr del 10.81.0.1/17 dev kontena",
        "ip link set kontena-vx type bridge_slave isolated off",
        "ip link set kontena-vx type bridge_slave learning on",
        "ip link set kontena-vx type bridge_slave flood on",
        "ip link set kontena-vx nomaster",
        "ip link set kontena-vx mtu 1300",
        "bridge fdb append 00:00:00:00:00:00 dev kontena-vx dst 198.51.100.77",
        "bridge fdb del 00:00:00:00:00:00 dev kontena-vx dst 198.51.100.2",
        "bridge fdb add 02:00:00:00:00:77 dev kontena-vx dst 198.51.100.77",
        "bridge fdb add 02:00:00:00:00:77 dev kontena-vx master static",
        "ip neigh add 10.81.1.77 lladdr 02:00:00:00:00:77 dev kontena nud permanent",
        "ip neigh del 10.81.1.2 dev kontena",
        "ip link set kontena-tap type bridge_slave isolated off",
        "ip link set kontena-tap type bridge_slave learning on",
        "ip link set kontena-tap type bridge_slave flood on",
        "ip link set kontena-tap nomaster",
        "ip link set kontena-tap down",
        "bridge fdb add 02:00:00:00:00:77 dev kontena-tap master static",
        "ip link del kontena-tap",
        "ip link set vethwe1 nomaster",
        "ip link set vethwe1 down",
        "ip link set vethwe1 type bridge_slave locked off",
        "iptables -D FORWARD -i kontena -o kontena -j ACCEPT",
        "iptables -I FORWARD -i kontena -o kontena -j ACCEPT",
    ];
    for damage in damages {
        host.netns.run(damage);
        let steps = converge(&trusting(), &all);
        // With the device, its tunnels and all that was proven through them are lost.
        let most = if damage == "ip link del kontena-tap" {
            20
        } else {
            6
        };
        assert!((1..=most).contains(&steps), "{damage}: {steps} steps");
        assert_eq!(converge(&trusting(), &all), 0, "{damage}");
    }
    assert_eq!(
        before.split(':').next(),
        tunnel().split(':').next(),
        "the same device"
    );
    hosts[0].containers[0]
        .netns
        .must_reach(hosts[1].containers[0].address);
}

#[test]
fn overlay_repairs_the_inside_of_a_container() {
    let (_switch, hosts) = world(1, &trusting());
    let host = &hosts[0];
    let netns = &host.containers[0].netns;
    for damage in [
        "ip addr del 10.81.1.1/17 dev ethwe",
        "ip addr add 10.81.1.99/17 dev ethwe",
        "ip route del 224.0.0.0/4 dev ethwe",
        "ip link set ethwe mtu 1200",
        "ip link set ethwe down",
        "ip link del ethwe",
        "ip link set ethwe address 02:00:00:00:00:05",
    ] {
        netns.run(damage);
        let steps = converge(&trusting(), &[host]);
        assert!((1..=5).contains(&steps), "{damage}: {steps} steps");
        assert_eq!(converge(&trusting(), &[host]), 0, "{damage}");
        netns.must_reach(host.node.address);
    }
}

#[test]
fn overlay_works_without_an_agent_and_a_new_agent_changes_nothing() {
    let (_switch, hosts) = world(2, &trusting());
    let all: Vec<&Host> = hosts.iter().collect();
    let [a, b] = &hosts[..] else { unreachable!() };
    let line = format!("ping -n -q -i 0.02 -c 150 -W 1 {}", b.containers[0].address);
    let mut pings = a.containers[0].netns.command(&line);
    let pings = pings.stdout(Stdio::piped()).spawn().unwrap();
    hosts.iter().for_each(Host::outlive);
    hosts.iter().for_each(Host::stop_agent);
    assert!(!a.netns.output("ip link show kontena-tap").status.success());
    a.containers[0].netns.must_reach(b.containers[0].address);
    hosts.iter().for_each(Host::start_agent);
    let clear = a.netns.run("bridge fdb show dev kontena-vx");
    let steps: usize = all.iter().map(|host| pass(&trusting(), host, &all)).sum();
    // The encrypted path, its table and its port, the ear for path_probes, and the live
    // table.
    assert_eq!(steps, 5 * 2, "all else is adopted as it was");
    assert_eq!(converge(&trusting(), &all), 0);
    assert_eq!(a.netns.run("bridge fdb show dev kontena-vx"), clear);
    let output = pings.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(" 0% packet loss"), "{text}");
}
