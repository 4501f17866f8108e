//! Reading the table, from listings as `nft` would write them.

use std::net::Ipv4Addr;

use super::*;
use crate::linux::nft::listing;

fn listed(filter: &Filter) -> Vec<Value> {
    let frame = frame(filter.tunnel_subnet, filter.tracked);
    listing::of(TABLE, &frame, all_elements(filter))
}

fn subnet(text: &str) -> InnerSubnet {
    text.parse::<Ipv4Network>().unwrap().try_into().unwrap()
}

fn state(objects: &[Value]) -> FilterState {
    super::state(&json!({"nftables": objects}))
}

fn filter(peers: &[u8]) -> Filter {
    let peer = |host: &u8| Ipv4Addr::new(198, 51, 100, *host);
    Filter {
        tunnel_subnet: InnerSubnet::default(),
        tracked: false,
        peers: peers.iter().map(peer).collect(),
        access: Access {
            own: BTreeSet::from([Ipv4Addr::new(10, 81, 0, 1)]),
            nodes: BTreeSet::from([Ipv4Addr::new(10, 81, 0, 2)]),
            services: HostServices {
                tcp: BTreeSet::from([2379]),
                udp: BTreeSet::from([53]),
            },
        },
        egress: EgressPolicy {
            masters: Some(BTreeSet::from([
                "203.0.113.5:443".parse().unwrap(),
                "[2001:db8::5]:443".parse().unwrap(),
            ])),
            bridges: Some(BTreeSet::from(["docker0".to_owned()])),
        },
    }
}

#[test]
fn our_own_table_is_sound_whatever_it_counted() {
    let elsewhere = Filter {
        tunnel_subnet: subnet("10.9.9.0/24"),
        ..filter(&[2])
    };
    let tracked = Filter {
        tracked: true,
        ..filter(&[2])
    };
    let of_nobody = Filter {
        egress: EgressPolicy {
            masters: Some(BTreeSet::new()),
            bridges: Some(BTreeSet::new()),
        },
        ..Filter::default()
    };
    let others = [filter(&[]), filter(&[2]), filter(&[10, 2])];
    for filter in [elsewhere, tracked, of_nobody].into_iter().chain(others) {
        let mut objects = listed(&filter);
        listing::count(&mut objects);
        assert_eq!(state(&objects), FilterState::Sound(filter));
    }
}

#[test]
fn nobody_passes_a_table_that_has_closed() {
    let mut objects = listed(&filter(&[2, 3]));
    let open = |object: &&mut Value| object["set"]["name"] == OPEN;
    let set = objects.iter_mut().find(open).unwrap();
    set["set"].as_object_mut().unwrap().remove("elem");
    assert_eq!(state(&objects), FilterState::Sound(filter(&[])));
}

#[test]
fn a_table_that_lacks_anything_or_has_more_is_broken() {
    let whole = listed(&filter(&[2]));
    for missing in 1..whole.len() {
        let mut objects = whole.clone();
        let removed = objects.remove(missing);
        assert_eq!(state(&objects), FilterState::Broken, "{removed}");
    }
    let mut more = whole.clone();
    let accept_all = json!({"chain": "input", "expr": [{"accept": null}]});
    more.insert(1, TABLE.object("rule", accept_all));
    assert_eq!(state(&more), FilterState::Broken);
    // Rules for two tunnel subnets fit neither.
    let mut both = whole.clone();
    let other = Filter {
        tunnel_subnet: subnet("10.9.9.0/24"),
        ..filter(&[2])
    };
    let of_other = listed(&other);
    let differs = (0..both.len()).rfind(|&at| both[at] != of_other[at]);
    both[differs.unwrap()] = of_other[differs.unwrap()].clone();
    assert_eq!(state(&both), FilterState::Broken);
    let mut swapped = whole;
    let of_input = |object: &Value| object["rule"]["chain"] == "input";
    let first = swapped.iter().position(of_input).unwrap();
    swapped.swap(first, first + 1);
    assert_eq!(state(&swapped), FilterState::Broken);
}
