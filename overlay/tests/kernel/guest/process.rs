//! An agent that is a process of its own and so can be killed as one.
//!
//! It is this program again, run for the very test that starts it. What the agent has to know is in its environment;
//! finding that, the test is the agent and never returns.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use kontena_lab::Netns;
use kontena_overlay::{Attachment, Process};
use kontena_schema::agent::{Endpoint, NodeEntry};
use kontena_schema::ids::PlacementId;
use kontena_sleeve::PrivateKey;
use serde_json::{Value, from_value, json};
use tokio::time::timeout;

use super::host::{Kind, Known, overlay};

const KNOWN: &str = "KONTENA_TEST_AGENT";
const SETTLED: &str = "this agent has settled";
/// How long it waits for news of its peers before it looks after everything else.
const TICK: Duration = Duration::from_secs(1);

/// The process of an agent, for a host whose kernel encrypts.
pub struct Agent(Child);

impl Agent {
    /// Starts the agent in a host's namespace and waits until it has nothing left to do. The test's name is that of the
    /// one that calls, which must begin with [`be`].
    pub fn start(netns: &Netns, known: &Known, test: &str) -> Self {
        let program = std::env::current_exe().unwrap();
        let line = format!("{} --exact {test} --nocapture", program.display());
        let mut command = netns.command(&line);
        let command = command.env(KNOWN, written(known).to_string());
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let before: Vec<String> = lines
            .map_while(Result::ok)
            .take_while(|line| !line.contains(SETTLED))
            .collect();
        assert_eq!(process.try_wait().unwrap(), None, "it lives: {before:?}");
        Self(process)
    }

    /// Ends it, without a word to it.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Is the agent, in a process that was started to be one.
pub fn be() {
    let Ok(known) = std::env::var(KNOWN) else {
        return;
    };
    let known = read(&serde_json::from_str(&known).unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(run(&known));
}

async fn run(known: &Known) {
    let overlay = overlay(Kind::Kernel).await;
    let mut peers = overlay.peers();
    loop {
        let states = peers.borrow_and_update().clone();
        let settled = known.settled(&states);
        let intent = known.intent(states);
        overlay.permit(Some(&intent));
        let report = overlay.reconcile(&intent).await;
        assert!(report.errors.is_empty(), "{report:#?}");
        if settled.is_ok() && report.steps_applied == 0 {
            println!("{SETTLED}");
        }
        // Either news or the tick.
        let _ = timeout(TICK, peers.changed()).await;
    }
}

/// What is known, but the keys, which follow from the host's number.
fn written(known: &Known) -> Value {
    let attachments = known.attachments.iter();
    let attachments = attachments.map(|(id, to)| json!([id, to.process.pid, to.container_id]));
    json!({
        "grid": known.grid,
        "own": known.own,
        "nodes": known.nodes,
        "endpoints": known.endpoints,
        "attachments": attachments.collect::<Vec<_>>(),
    })
}

fn read(known: &Value) -> Known {
    let part = |name: &str| known[name].clone();
    let own: NodeEntry = from_value(part("own")).unwrap();
    let endpoints: Vec<Endpoint> = from_value(part("endpoints")).unwrap();
    let attachments: Vec<(PlacementId, i32, String)> = from_value(part("attachments")).unwrap();
    let attachment = |(id, pid, container_id): (PlacementId, i32, String)| {
        let endpoint = endpoints.iter().find(|endpoint| endpoint.placement == id);
        let endpoint = endpoint.expect("its endpoint is in the directory");
        let attachment = Attachment {
            process: Process::of(pid).expect("the container lives"),
            container_id,
            address: endpoint.address,
            mac: endpoint.mac(),
        };
        (id, attachment)
    };
    Known {
        grid: from_value(part("grid")).unwrap(),
        nodes: from_value(part("nodes")).unwrap(),
        keys: vec![PrivateKey::from_octets([own.number.get(); 32])],
        attachments: attachments.into_iter().map(attachment).collect(),
        endpoints,
        own,
    }
}
