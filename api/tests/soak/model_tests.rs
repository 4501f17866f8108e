//! The model itself: the cases of the decision, one by one, what always holds, and
//! that a fault in what a Master keeps does not stay unseen.

use super::*;

/// A grid of 510 addresses, of which `left` are free.
fn grid(left: usize) -> Model {
    let mut model = Model::new(512);
    for name in ["a", "b", "c"] {
        model.join(name).unwrap();
    }
    model.reserve("ballast", 507 - left).unwrap();
    model
}

fn place(model: &mut Model, node: &str, id: Id) {
    model.place(node, &[(id, format!("s-{id}"))]).unwrap();
}

fn returns(model: &mut Model, node: &str, containers: &[(Id, Lease)]) {
    model.returns(node, &containers.iter().copied().collect());
}

fn lose(model: &mut Model, node: &str) {
    model.lose(&[node.to_owned()]);
}

fn had(model: &Model, id: Id) -> (Host, Lease) {
    model.placements[&id].had.unwrap()
}

#[test]
fn addresses_are_given_out_by_class_and_the_longest_free_last() {
    let mut model = Model::new(512);
    let all: Vec<Host> = model
        .reserve("all", 510)
        .unwrap()
        .iter()
        .map(|(host, _)| *host)
        .collect();
    assert_eq!(all[..2], [257, 258]);
    assert_eq!(all[252..258], [509, 510, 255, 256, 254, 253]);
    assert_eq!(all[509], 1);
    assert_eq!(model.reserve("more", 1), Err(Refusal::GridFull));
    for host in [300, 256, 2, 299] {
        model.release(host, None).unwrap();
    }
    assert_eq!(model.free(), [300, 299, 256, 2]);
    assert_eq!(model.join("a"), Ok(2));
    assert_eq!(model.reserve_this("one", 299), Ok(512));
    assert_eq!(model.reserve_this("one", 299), Err(Refusal::Held));
    assert_eq!(model.release(2, None), Err(Refusal::NotReserved));
    assert_eq!(model.release(256, None), Err(Refusal::NotFound));
    assert_eq!(model.release(299, Some(3)), Err(Refusal::NotFound));
}

#[test]
fn what_is_free_is_restored_with_its_lease() {
    let mut model = grid(5);
    place(&mut model, "a", 1);
    let before = had(&model, 1);
    lose(&mut model, "a");
    assert_eq!(model.placements[&1].state, State::Lost);
    assert!(!model.held.contains_key(&before.0));
    returns(&mut model, "a", &[]);
    assert_eq!(
        (model.placements[&1].state, had(&model, 1)),
        (State::Held, before)
    );
}

#[test]
fn of_two_instances_the_older_lease_keeps_the_address_and_the_other_moves() {
    let mut model = grid(1);
    place(&mut model, "a", 1);
    let (host, lease) = had(&model, 1);
    lose(&mut model, "a");
    place(&mut model, "b", 2);
    assert_eq!(
        (had(&model, 2).0, model.placements[&1].state),
        (host, State::Taken)
    );
    returns(&mut model, "a", &[(1, lease)]);
    assert_eq!(had(&model, 1), (host, lease));
    assert!(matches!(model.placements[&2].state, State::Waiting(_)));
    // And the other way round: who returns later with a younger lease moves.
    lose(&mut model, "a");
    assert_eq!(had(&model, 2).0, host, "it waited for that");
    lose(&mut model, "b");
    returns(&mut model, "a", &[(1, lease)]);
    let (_, younger) = model.placements[&2].had.unwrap();
    returns(&mut model, "b", &[(2, younger)]);
    assert_eq!(had(&model, 1), (host, lease));
    assert_eq!(model.waiting(), [2]);
    assert_eq!(model.met["returns: an older lease has it"], 1);
}

#[test]
fn without_a_container_or_against_a_reservation_or_a_node_the_one_that_returns_moves() {
    for taker in ["instance", "reservation", "node"] {
        let mut model = grid(1);
        place(&mut model, "a", 1);
        let (host, lease) = had(&model, 1);
        assert_eq!(host, 4);
        lose(&mut model, "a");
        let containers = [(1, lease)];
        match taker {
            "instance" => place(&mut model, "b", 2),
            "reservation" => drop(model.reserve("r", 1).unwrap()),
            _ => drop(model.join("d").unwrap()),
        }
        let named = if taker == "instance" {
            &containers[..0]
        } else {
            &containers
        };
        let before = model.held.clone();
        returns(&mut model, "a", named);
        assert_eq!(model.held, before, "{taker}");
        assert_eq!(model.waiting(), [1], "{taker}");
    }
}

#[test]
fn who_waits_is_served_in_turn_and_loses_its_turn_with_its_node() {
    let mut model = grid(2);
    place(&mut model, "a", 1);
    place(&mut model, "a", 2);
    lose(&mut model, "a");
    model.reserve("r", 2).unwrap();
    returns(&mut model, "a", &[]);
    assert_eq!(model.waiting(), [1, 2]);
    model.release(300, None).unwrap();
    assert_eq!((had(&model, 1).0, model.waiting()), (300, vec![2]));
    lose(&mut model, "a");
    assert_eq!(model.placements[&2].state, State::None);
    assert_eq!(model.free(), [300]);
    returns(&mut model, "a", &[]);
    assert_eq!((had(&model, 1).0, model.waiting()), (300, vec![2]));
}

#[test]
fn a_joining_node_takes_its_number_back_from_an_instance_only() {
    let mut model = grid(2);
    place(&mut model, "a", 1);
    place(&mut model, "a", 2);
    assert_eq!((had(&model, 1).0, had(&model, 2).0), (5, 4));
    assert_eq!(model.join("d"), Ok(4));
    assert_eq!((model.join("e"), model.waiting()), (Ok(5), vec![2, 1]));
    assert_eq!(model.join("f"), Err(Refusal::GridFull));
    model.remove(&[2]);
    model.remove_node("e");
    assert_eq!(had(&model, 1).0, 5);
}

#[test]
fn an_instance_that_is_to_go_keeps_its_address_until_its_node_says_so_or_is_lost() {
    let mut model = grid(3);
    for id in 1..=3 {
        place(&mut model, "a", id);
    }
    model.removed("a", 1);
    assert_eq!(model.placements.len(), 3, "it is to run");
    model.remove(&[1, 2]);
    model.removed("b", 1);
    assert_eq!(model.free().len(), 0, "it is another node's");
    model.removed("a", 1);
    assert_eq!(model.free().len(), 1);
    lose(&mut model, "a");
    assert_eq!((model.free().len(), model.placements.len()), (3, 1));
    model.remove(&[3]);
    assert_eq!(model.placements.len(), 0);
}

/// Does something, chosen by the dice and by nothing else.
fn something(model: &mut Model, dice: &mut fastrand::Rng, id: Id) {
    let nodes: Vec<(String, bool)> = model
        .nodes
        .iter()
        .map(|(name, node)| (name.clone(), node.lost))
        .collect();
    let (node, lost) = dice.choice(&nodes).cloned().unwrap();
    let ids: Vec<Id> = model
        .placements
        .iter()
        .filter(|(_, p)| !p.removing)
        .map(|(id, _)| *id)
        .collect();
    match dice.u8(..9) {
        0 | 1 => drop(model.reserve("r", dice.usize(1..4))),
        2 | 3 => drop(model.release(dice.u32(1..511), None)),
        4 if !lost => drop(model.place(&node, &[(id, format!("s-{id}"))])),
        5 if lost => {
            let own = model.placements.iter().filter(|(_, p)| p.node == node);
            let containers = own.filter_map(|(id, p)| Some((*id, p.had?.1))).collect();
            model.returns(&node, &containers);
        }
        5 => lose(model, &node),
        6 => model.remove(&dice.choice(&ids).copied().into_iter().collect::<Vec<_>>()),
        7 => model.removed(&node, dice.i64(1..=id)),
        _ if nodes.len() > 5 => model.remove_node(&node),
        _ => drop(model.join(&format!("n{id}"))),
    }
}

fn visible(model: &Model) -> impl PartialEq + use<> {
    let states: Vec<_> = model
        .placements
        .iter()
        .map(|(id, p)| (*id, p.had, p.removing, format!("{:?}", p.state)))
        .collect();
    let held: Vec<_> = model
        .held
        .iter()
        .map(|(host, held)| (*host, held.lease, held.holder.clone()))
        .collect();
    (states, held, model.counts(), model.waiting())
}

#[test]
fn whatever_happens_every_address_has_one_holder_and_nobody_waits_beside_a_free_one() {
    for seed in 0..20 {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut model = grid(4);
        for id in 1..2000 {
            something(&mut model, &mut dice, id);
            for (id, placement) in &model.placements {
                let holds = |(host, lease)| {
                    model.held.get(&host)
                        == Some(&Held {
                            holder: Holder::Placement(*id),
                            lease,
                        })
                };
                let held = placement.had.is_some_and(holds);
                assert_eq!(held, placement.state == State::Held, "{placement:?}");
                let lost = model.nodes[&placement.node].lost;
                assert!(
                    !lost || matches!(placement.state, State::Lost | State::Taken | State::None)
                );
                assert!(lost || !matches!(placement.state, State::Lost | State::Taken));
            }
            assert!(model.waiting().is_empty() || model.free().is_empty());
        }
        let expected = [
            "returns: an older lease has it",
            "waits: served when something is free",
        ];
        assert!(
            expected.iter().any(|row| model.met.contains_key(row)),
            "{:?}",
            model.met
        );
    }
}

/// Runs the same on a model and on one that is spoilt in the middle, once there is something
/// to spoil; answers whether a comparison of what can be seen finds that.
fn found(spoil: fn(&mut Model)) -> bool {
    (0..10).any(|seed| {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut good = grid(4);
        let mut bad = good.clone();
        for id in 1..1000 {
            something(&mut good, &mut dice, id);
            if id >= 500 {
                bad = good.clone();
                spoil(&mut bad);
                if bad != good {
                    break;
                }
            }
        }
        let mut same_dice = dice.clone();
        (1000..2000).any(|id| {
            let differ = visible(&good) != visible(&bad);
            if !differ {
                something(&mut good, &mut dice, id);
                something(&mut bad, &mut same_dice, id);
            }
            differ
        })
    })
}

#[test]
fn a_fault_in_what_is_kept_shows_sooner_or_later() {
    assert!(!found(|_| {}), "two good ones stay the same");
    // The order of the free ones, which only later answers show.
    assert!(found(|model| {
        let free = model.free();
        let [first, .., last] = free[..] else { return };
        let orders = (
            model.released.get(&first).copied(),
            model.released.get(&last).copied(),
        );
        model.released.extend(orders.1.map(|order| (first, order)));
        model.released.extend(orders.0.map(|order| (last, order)));
    }));
    // A released address that counts as never used.
    assert!(found(|model| model.released.clear()));
    // A lease number, or a count, that was skipped.
    assert!(found(|model| model.leases += 1));
    assert!(found(|model| model.releases += 1));
    // A leaked address, and one with a second owner.
    assert!(found(|model| {
        model.placements.pop_last();
    }));
    assert!(found(|model| {
        model.held.pop_last();
    }));
    // A lost instance that is told too early that its address was given away, and one that
    // is to go and does not.
    assert!(found(|model| {
        for placement in model
            .placements
            .values_mut()
            .filter(|p| p.state == State::Lost)
        {
            placement.state = State::Taken;
        }
    }));
    assert!(found(|model| {
        for placement in model.placements.values_mut().filter(|p| p.removing) {
            placement.removing = false;
        }
    }));
}
