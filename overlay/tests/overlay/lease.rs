//! What becomes of a container whose lease ended while its host was cut off from
//! the Master, but not from its peers.

use std::net::Ipv4Addr;

use kontena_schema::ids::LeaseNumber;
use kontena_schema::mac::Mac;

use kontena_overlay_lab::{
    BOUND, Container, Host, Netns, count, counted, dropped, eventually, forger, intent, send,
    settle, trusting, world,
};

/// What is sent to the contested address, and no multicast.
const TO_IT: &str = "ip daddr 10.81.1.3";
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const EVERYBODY: Mac = Mac([0xff; 6]);

/// The address that the tests are about.
const CONTESTED: Ipv4Addr = Ipv4Addr::new(10, 81, 1, 3);

/// One pass on the hosts that hear of changes; all of them are in the directory.
fn settle_connected(hosts: &[Host], connected: usize) {
    let all: Vec<&Host> = hosts.iter().collect();
    for host in &hosts[..connected] {
        host.must_reconcile(&intent(&trusting(), host, &all));
    }
}

/// Three hosts with a container each, who know each other; the third host then
/// hears no more of the Master, and its container loses its lease.
fn cut_off() -> (kontena_overlay_lab::Switch, Vec<Host>, Container) {
    let (switch, mut hosts) = world(3, &trusting());
    let lost = hosts[2].containers.remove(0);
    assert_eq!(lost.address, CONTESTED);
    for host in &hosts[..2] {
        let netns = &host.containers[0].netns;
        lost.netns.must_reach(host.containers[0].address);
        netns.must_reach(CONTESTED);
    }
    (switch, hosts, lost)
}

/// The contested address goes to a new container of this host.
fn give_to(host: &mut Host) {
    let mut heir = Container::start(13, CONTESTED);
    heir.lease = LeaseNumber(99);
    host.containers.push(heir);
}

fn mac(container: &Container) -> Mac {
    container.attachment().mac
}

/// What the caches of a container say of an address.
fn cached(netns: &Netns, address: Ipv4Addr) -> String {
    netns.run(&format!("ip neigh show {address} dev ethwe"))
}

/// An ARP message that tells `of` as the sender's addresses, in a frame.
fn arp(from: Mac, to: Mac, kind: u8, of: (Mac, Ipv4Addr), about: Ipv4Addr) -> Vec<u8> {
    let mut frame = [to.0, from.0].concat();
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, kind]);
    frame.extend(of.0.0);
    frame.extend(of.1.octets());
    frame.extend(if kind == REPLY { to.0 } else { [0; 6] });
    frame.extend(about.octets());
    frame
}

/// Tells everybody in every way of ARP that it still has its address, from the container
/// and in place of its host, which sends none; hosts drop each frame.
fn insists(lost: &Container, own: &Host, hosts: [&Host; 2], others: [&Container; 3]) {
    let stranger = Ipv4Addr::new(10, 81, 99, 9);
    let told = (mac(lost), CONTESTED);
    let forge = forger(own, trusting().vni);
    let drops = || hosts.map(|host| dropped(host, "dropped_sender"));
    let (before, mut sent) = (drops(), 0);
    let others = others.map(mac);
    for to in [EVERYBODY].into_iter().chain(others) {
        for kind in [REQUEST, REPLY] {
            for about in [stranger, CONTESTED, hosts[0].containers[0].address] {
                let frame = arp(mac(lost), to, kind, told, about);
                send(&lost.netns, "ethwe", &frame);
                hosts
                    .iter()
                    .for_each(|host| forge(host.node.number.get(), &frame));
                sent += 1;
            }
        }
    }
    eventually("all of it is dropped", || match drops() {
        now if now == before.map(|count| count + sent) => Ok(()),
        now => Err(format!("{now:?} after {before:?}")),
    });
}

#[test]
fn overlay_lets_nobody_answer_a_container_that_lost_its_lease() {
    let (_switch, mut hosts, lost) = cut_off();
    give_to(&mut hosts[1]);
    settle_connected(&hosts, 2);
    let [a, b, cut_off] = &hosts[..] else {
        unreachable!()
    };
    let [other, heir] = &b.containers[..] else {
        unreachable!()
    };
    let witness = &a.containers[0];
    let from_lost = format!("ether saddr {}", mac(&lost));
    let receivers = [witness, other, heir];
    for receiver in receivers {
        count(&receiver.netns, "ethwe", &from_lost);
    }
    count(&lost.netns, "ethwe", TO_IT);

    // It goes on as before: with what it remembers, and asking anew.
    let others = [
        witness.address,
        other.address,
        a.node.address,
        b.node.address,
    ];
    std::thread::scope(|scope| {
        for to in others {
            let lost = &lost;
            scope.spawn(move || assert!(lost.netns.ping(to).is_err(), "{to} answers"));
        }
    });
    lost.netns.run("ip neigh flush dev ethwe");
    insists(&lost, cut_off, [a, b], [witness, other, heir]);
    assert!(lost.netns.ping(witness.address).is_err());
    for receiver in receivers {
        assert_eq!(counted(&receiver.netns), 0, "a frame came in");
    }
    assert_eq!(counted(&lost.netns), 0, "an answer came");
    for host in [a, b] {
        assert!(dropped(host, "dropped_sender") > 0);
    }

    // Who has the address now is not disturbed.
    for (from, to) in [
        (witness, heir),
        (heir, witness),
        (other, heir),
        (heir, other),
    ] {
        from.netns.must_reach(to.address);
    }
    for knows in [witness, other] {
        let cached = cached(&knows.netns, CONTESTED);
        assert!(cached.contains(&mac(heir).to_string()), "{cached}");
    }
    assert_eq!(counted(&lost.netns), 0);

    // The anti_spoofing alone does it: the counter can see what would come in.
    a.netns.run("nft delete table netdev kontena");
    let _ = lost.netns.ping(witness.address);
    eventually("the frame is seen", || match counted(&witness.netns) {
        0 => Err("not seen".to_owned()),
        _ => Ok(()),
    });
}

#[test]
fn overlay_lets_a_container_talk_again_whose_lease_is_restored() {
    let (_switch, mut hosts, lost) = cut_off();
    give_to(&mut hosts[1]);
    settle_connected(&hosts, 2);
    assert!(lost.netns.ping(hosts[0].containers[0].address).is_err());

    // Its host is back, and the older lease wins.
    let heir = hosts[1].containers.pop();
    hosts[2].containers.push(lost);
    let all: Vec<&Host> = hosts.iter().collect();
    settle(&trusting(), &all);
    let [a, b, c] = &hosts[..] else {
        unreachable!()
    };
    for host in [a, b] {
        let before = [
            dropped(host, "dropped_sender"),
            dropped(host, "dropped_arp"),
        ];
        host.containers[0].netns.must_reach(CONTESTED);
        c.containers[0].netns.must_reach(host.containers[0].address);
        c.containers[0].netns.must_reach(host.node.address);
        let after = [
            dropped(host, "dropped_sender"),
            dropped(host, "dropped_arp"),
        ];
        assert_eq!(before, after, "nothing of it is dropped");
    }
    assert_eq!(settle(&trusting(), &all), 0);
    drop(heir);
}

#[test]
fn overlay_leads_those_who_knew_the_old_holder_to_the_new_one() {
    let (_switch, mut hosts, lost) = cut_off();
    count(&lost.netns, "ethwe", TO_IT);
    give_to(&mut hosts[1]);
    settle_connected(&hosts, 2);
    let [a, b, _] = &hosts[..] else {
        unreachable!()
    };
    let heir = &b.containers[1];
    // One on the new holder's own host and one on another.
    for knew in [&a.containers[0], &b.containers[0]] {
        eventually("the cache is right", || {
            let cached = cached(&knew.netns, CONTESTED);
            let right = cached.contains(&mac(heir).to_string());
            right.then_some(()).ok_or(cached)
        });
        let answered = knew.netns.ping(CONTESTED);
        assert!(answered.is_ok(), "the first one is answered: {answered:?}");
    }
    assert_eq!(counted(&lost.netns), 0, "nothing went to the old holder");
}

#[test]
fn overlay_sends_nothing_to_who_lost_an_address_that_nobody_has() {
    let (_switch, hosts, lost) = cut_off();
    count(&lost.netns, "ethwe", TO_IT);
    let knew = &hosts[0].containers[0].netns;
    let before = cached(knew, CONTESTED);
    assert!(before.contains(&mac(&lost).to_string()), "{before}");
    // A reservation took it: it is nobody's endpoint.
    settle_connected(&hosts, 2);
    assert!(knew.ping(CONTESTED).is_err());
    assert_eq!(counted(&lost.netns), 0);
}

#[test]
fn overlay_takes_no_arp_of_others() {
    let (_switch, hosts) = world(3, &trusting());
    let [a, b, c] = &hosts[..] else {
        unreachable!()
    };
    let (liar, victim, listener) = (&b.containers[0], &c.containers[0], &a.containers[0]);
    listener.netns.must_reach(victim.address);
    listener.netns.must_reach(liar.address);
    count(&listener.netns, "ethwe", "ether type arp");
    let stranger = Ipv4Addr::new(10, 81, 99, 9);
    let host = (Mac::of_node(a.node.address), a.node.address);
    let told = (mac(listener), listener.address);
    let messages = [
        (EVERYBODY, REQUEST, victim.address, stranger),
        (told.0, REPLY, victim.address, told.1),
        (told.0, REQUEST, victim.address, told.1),
        (told.0, REPLY, c.node.address, told.1),
        (told.0, REPLY, stranger, told.1),
        (host.0, REPLY, stranger, host.1),
        // And the truth.
        (EVERYBODY, REQUEST, liar.address, told.1),
        (told.0, REPLY, liar.address, told.1),
    ];
    let forge = forger(b, trusting().vni);
    let tell = |(to, kind, told, about): (Mac, u8, Ipv4Addr, Ipv4Addr)| {
        let frame = arp(mac(liar), to, kind, (mac(liar), told), about);
        forge(1, &frame);
    };
    for (sent, message) in (1..).zip(messages) {
        tell(message);
        eventually("the drop is counted", || {
            let dropped = dropped(a, "dropped_arp");
            (dropped == sent).then_some(()).ok_or(dropped.to_string())
        });
    }
    // In a tag of number 0, which kernels take off.
    let (to, kind, of, about) = messages[1];
    let frame = arp(mac(liar), to, kind, (mac(liar), of), about);
    for tag in [[0x81, 0, 0, 0], [0x88, 0xa8, 0, 0]] {
        let before = dropped(a, "dropped_arp");
        forge(1, &[&frame[..12], &tag, &frame[12..]].concat());
        eventually("the drop is counted", || {
            let dropped = dropped(a, "dropped_arp");
            (dropped == before + 1)
                .then_some(())
                .ok_or(dropped.to_string())
        });
    }
    assert_eq!(dropped(a, "dropped_sender"), 0);
    assert_eq!(counted(&listener.netns), 0);
    let knows = cached(&listener.netns, victim.address);
    assert!(knows.contains(&mac(victim).to_string()), "{knows}");
    assert!(!a.netns.run("ip neigh").contains("10.81.99.9"));
    listener.netns.must_reach(victim.address);

    // Without the anti_spoofing a lie is believed: the test can tell.
    a.netns.run("nft delete table netdev kontena");
    let start = std::time::Instant::now();
    while start.elapsed() < BOUND {
        // The kernel lets an entry rest for a second before it takes another MAC.
        tell(messages[1]);
        let knows = cached(&listener.netns, victim.address);
        if knows.contains(&mac(liar).to_string()) {
            return;
        }
        // Between two looks at a state, which have a bound.
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("the lie is not believed, so this test shows nothing");
}

#[test]
fn overlay_forgets_that_it_dropped_frames_of_a_container_before_it_knew_it() {
    let (_switch, mut hosts) = world(2, &trusting());
    hosts[1].add_container(12);
    let all: Vec<&Host> = hosts.iter().collect();
    let [a, b] = &hosts[..] else { unreachable!() };
    // The new container's own host hears of it first.
    b.must_reconcile(&intent(&trusting(), b, &all));
    let (new, old) = (&b.containers[1], &a.containers[0]);
    assert!(new.netns.ping(old.address).is_err());
    assert!(dropped(a, "dropped_sender") > 0);
    a.must_reconcile(&intent(&trusting(), a, &all));
    let answered = new.netns.ping(old.address);
    assert!(answered.is_ok(), "{answered:?}");
    let answered = old.netns.ping(new.address);
    assert!(answered.is_ok(), "{answered:?}");
}

#[test]
fn overlay_guards_the_tunnel_without_an_agent() {
    let (_switch, mut hosts, lost) = cut_off();
    give_to(&mut hosts[1]);
    // Each pass is an agent's that then ends.
    settle_connected(&hosts, 2);
    let before = dropped(&hosts[0], "dropped_sender");
    assert!(lost.netns.ping(hosts[0].containers[0].address).is_err());
    assert!(dropped(&hosts[0], "dropped_sender") > before);
    // Whoever empties the chain opens nothing.
    hosts[0].netns.run("nft flush chain netdev kontena ingress");
    assert!(lost.netns.ping(hosts[0].containers[0].address).is_err());
}
