//! Merging, and the sample rows that other modules' tests share.

use kontena_schema::address::InnerSubnet;
use kontena_schema::agent::{Desired, Own, Shared};
use kontena_schema::http::services::ServiceSpec;
use kontena_schema::ids::{LeaseNumber, ServiceRevision};
use kontena_schema::path::Site;

use super::*;

pub(crate) fn welcome(node: i64) -> Welcome {
    Welcome {
        protocol: kontena_schema::agent::PROTOCOL,
        node: NodeId(node),
        name: format!("node-{node}"),
        number: NodeNumber::try_from(node).unwrap(),
        grid: GridId(1),
        grid_name: "demo".to_owned(),
        epoch: Epoch(1),
        node_token: None,
    }
}

pub(crate) fn grid() -> GridSettings {
    GridSettings {
        id: GridId(1),
        name: "demo".to_owned(),
        subnet: "10.81.0.0/19".parse().unwrap(),
        supernet: "10.81.0.0/17".parse().unwrap(),
        inner_subnet: InnerSubnet::default(),
        trusted_subnets: vec!["198.51.100.0/24".parse().unwrap()],
        vni: 4096,
    }
}

pub(crate) fn node(id: u8) -> NodeEntry {
    NodeEntry {
        id: NodeId(i64::from(id)),
        name: format!("node-{id}"),
        number: NodeNumber::try_from(id).unwrap(),
        address: [10, 81, 0, id].into(),
        site: Site {
            region: "default".to_owned(),
            public_ip: None,
            private_ip: Some([198, 51, 100, id].into()),
        },
        behind_nat: None,
        keys: None,
        next_key_known: false,
        key_turn: kontena_schema::ids::KeyTurn(0),
    }
}

pub(crate) fn endpoint(placement: i64, node: i64, last: u8, ready: bool) -> Endpoint {
    Endpoint {
        placement: PlacementId(placement),
        node: NodeId(node),
        address: [10, 81, 1, last].into(),
        lease: LeaseNumber(placement),
        stack: Some("testapp".to_owned()),
        service: "web".to_owned(),
        instance: u32::from(last),
        ready,
    }
}

pub(crate) fn placement(id: i64, last: u8) -> Placement {
    Placement {
        id: PlacementId(id),
        desired: Desired::Running,
        stack: Some("testapp".to_owned()),
        service: "web".to_owned(),
        instance: u32::from(last),
        service_revision: ServiceRevision(1),
        address: Some([10, 81, 1, last].into()),
        lease: Some(LeaseNumber(id)),
        lease_reason: None,
        spec: ServiceSpec {
            image: "kontena/toolbox".to_owned(),
            ..ServiceSpec::default()
        },
        platform_env: [("KONTENA_NODE_NAME".to_owned(), "node-1".to_owned())].into(),
    }
}

/// Node 1 of two at revision 7, with one placement of its own and one elsewhere.
pub(crate) fn directory() -> Directory {
    let mut directory = Directory::default();
    directory.welcome(&welcome(1));
    directory.merge(snapshot(7)).unwrap();
    directory
}

pub(crate) fn snapshot(to: i64) -> Changes {
    Changes {
        timeline: "t1".to_owned(),
        from: Revision::ZERO,
        to: Revision(to),
        shared: Shared {
            grid: Some(grid()),
            nodes: vec![node(1), node(2)],
            endpoints: vec![endpoint(11, 1, 1, true), endpoint(12, 2, 2, true)],
            ..Shared::default()
        },
        own: Own {
            placements: vec![placement(11, 1)],
            ..Own::default()
        },
    }
}

fn after(from: i64, to: i64) -> Changes {
    Changes {
        timeline: "t1".to_owned(),
        from: Revision(from),
        to: Revision(to),
        shared: Shared::default(),
        own: Own::default(),
    }
}

#[test]
fn changes_add_replace_and_take_away() {
    let mut directory = directory();
    let mut changes = after(7, 9);
    changes.shared.endpoints = vec![endpoint(12, 2, 2, false), endpoint(13, 2, 3, true)];
    changes.shared.gone_nodes = vec![NodeId(2)];
    changes.own.gone_placements = vec![PlacementId(11)];
    directory.merge(changes).unwrap();

    assert_eq!(directory.revision(), Revision(9));
    assert_eq!(directory.nodes.len(), 1);
    assert_eq!(directory.endpoints.len(), 3);
    assert!(!directory.endpoints[&PlacementId(12)].ready);
    assert!(directory.placements.is_empty());
}

#[test]
fn a_snapshot_replaces_everything_but_the_identity() {
    let mut directory = directory();
    let mut changes = snapshot(3);
    changes.timeline = "restored".to_owned();
    changes.shared.endpoints.clear();
    directory.merge(changes).unwrap();
    assert!(directory.endpoints.is_empty());
    assert_eq!(directory.revision(), Revision(3));
    assert_eq!(directory.position().unwrap().timeline, "restored");
    assert_eq!(directory.me, Some(Identity::from(&welcome(1))));
}

#[test]
fn changes_that_do_not_fit_change_nothing() {
    let before = directory();
    let foreign = Changes {
        timeline: "t2".to_owned(),
        ..after(7, 8)
    };
    let mut bare = snapshot(9);
    bare.shared.grid = None;
    for (changes, error) in [
        (
            after(6, 8),
            MergeError::Gap {
                from: Revision(6),
                at: Revision(7),
            },
        ),
        (
            after(7, 6),
            MergeError::Backwards {
                from: Revision(7),
                to: Revision(6),
            },
        ),
        (foreign, MergeError::Timeline),
        (bare, MergeError::NoSettings),
    ] {
        let mut directory = before.clone();
        assert_eq!(directory.merge(changes), Err(error));
        assert_eq!(directory, before);
    }
}

#[test]
fn another_identity_knows_nothing_and_the_same_one_everything() {
    let mut directory = directory();
    directory.welcome(&Welcome {
        epoch: Epoch(2),
        ..welcome(1)
    });
    assert_eq!(directory.revision(), Revision(7));
    assert_eq!(directory.me.as_ref().unwrap().epoch, Epoch(2));
    directory.welcome(&welcome(3));
    assert_eq!(directory.position(), None);
    assert!(directory.placements.is_empty());
}

#[test]
fn settings_without_an_inner_subnet_have_the_default() {
    let network: ipnetwork::Ipv4Network = "10.9.9.0/24".parse().unwrap();
    let settings = GridSettings {
        inner_subnet: network.try_into().unwrap(),
        ..grid()
    };
    let mut told = serde_json::to_value(&settings).unwrap();
    assert_eq!(told["inner_subnet"], "10.9.9.0/24");
    assert_eq!(
        serde_json::from_value::<GridSettings>(told.clone()).unwrap(),
        settings
    );
    told.as_object_mut().unwrap().remove("inner_subnet");
    assert_eq!(
        serde_json::from_value::<GridSettings>(told).unwrap(),
        grid()
    );
}

#[test]
fn rows_of_an_older_protocol_are_asked_for_again() {
    // An older Master tells nothing of what is new, and a newer one only what changes.
    let mut directory = Directory::default();
    directory.welcome(&Welcome {
        protocol: PROTOCOL - 1,
        ..welcome(1)
    });
    directory.merge(snapshot(7)).unwrap();
    assert_eq!(directory.position(), None);
    directory.welcome(&welcome(1));
    directory.merge(after(7, 8)).unwrap();
    assert_eq!(directory.position(), None);
    directory.merge(snapshot(9)).unwrap();
    assert_eq!(directory.position().unwrap().revision, Revision(9));

    // What an older agent left on disk says nothing of it.
    let mut left = serde_json::to_value(&directory).unwrap();
    for part in ["me", "reached"] {
        left[part].as_object_mut().unwrap().remove("protocol");
    }
    let left: Directory = serde_json::from_value(left).unwrap();
    assert_eq!(left.position(), None);
    assert_eq!(left.nodes, directory.nodes);
}
