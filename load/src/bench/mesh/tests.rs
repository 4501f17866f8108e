//! A mesh of thirty on the stack of `make test`.

use std::time::{Duration, Instant};

use super::hosts::Hosts;
use super::master::Master;
use super::{Trust, reach};
use crate::stack::Stack;
use crate::tree::Tree;

const NODES: u16 = 30;
/// Ten times what it takes on two processors that do nothing else.
const WITHIN: Duration = Duration::from_secs(60);
/// The replicas of that stack.
const REPLICAS: u16 = 2;

fn all_reach_all(trust: Trust) {
    let project = std::env::var("KONTENA_TEST_PROJECT")
        .expect("KONTENA_TEST_PROJECT is not set; run the tests with make test");
    let stack = Stack::new(&Tree::find().unwrap(), &project);
    let hosts = Hosts::start(NODES, None).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let master = Master::open(stack.replicas(REPLICAS).unwrap(), &hosts).unwrap();
        let mut grid = master.grid(trust).await.unwrap();
        let begun = Instant::now();
        let at = (master.uri.as_str(), grid.token.as_str());
        let log = "warn,boringtun=off";
        let agents = hosts.agents(&stack.program("kontena-agent"), at, log);
        let mut agents = agents.unwrap();
        let reached = reach(&hosts, begun, WITHIN).await.unwrap();
        assert_eq!(reached.pairs, 870, "{reached}");
        assert_eq!(grid.count().await.unwrap(), usize::from(NODES));
        if trust == Trust::Fast {
            grid.clear(begun, WITHIN).await.unwrap();
        }
        // None of them has ended.
        agents.usage().unwrap();
        agents.stop().unwrap();
        grid.remove().await.unwrap();
    });
}

#[test]
fn thirty_nodes_that_trust_nobody_reach_each_other() {
    all_reach_all(Trust::Sealed);
}

#[test]
fn thirty_nodes_that_trust_each_other_do_so_in_clear() {
    all_reach_all(Trust::Fast);
}
