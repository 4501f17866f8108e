//! The overlay's own task: what it makes of requests, whoever else hangs.

use std::sync::Arc;

use kontena_overlay::{Membership, OverlayState, Request, task};
use kontena_overlay_lab::{Host, eventually, intent, pass, trusting, world};
use kontena_schema::ids::Revision;
use tokio::sync::watch;

/// The task at work on a host.
struct Running {
    request: watch::Sender<Arc<Request>>,
    state: watch::Receiver<Arc<OverlayState>>,
    _task: kontena_task::Task,
}

impl Running {
    fn start(host: &Host) -> Self {
        let (request, requested) = watch::channel(Arc::default());
        let (state_in, state) = watch::channel(Arc::default());
        let (overlay, runtime) = host.agent();
        let _inside = runtime.enter();
        let task = kontena_task::spawn("overlay", task::run(overlay, requested, state_in));
        Self {
            request,
            state,
            _task: task,
        }
    }

    /// Asks for this, and waits until the state is so.
    fn ask(&self, what: &str, request: Request, is: impl Fn(&OverlayState) -> bool) {
        self.request.send_replace(Arc::new(request));
        eventually(what, || {
            let state = self.state.borrow().clone();
            if is(&state) {
                Ok(())
            } else {
                Err(format!("{state:?}"))
            }
        });
    }
}

/// What an agent asks for that has not looked at the containers yet.
fn blind(host: &Host, all: &[&Host], revision: i64) -> Request {
    let mut grid = intent(&trusting(), host, all);
    let attachments = grid.attachments.take();
    assert!(attachments.is_some_and(|known| !known.is_empty()));
    Request {
        keys: grid.keys.clone(),
        egress: grid.egress.clone(),
        services: grid.services.clone(),
        multicast: grid.multicast,
        attachments: None,
        grid: Membership::Member {
            revision: Revision(revision),
            grid: Arc::new(grid),
        },
    }
}

#[test]
fn overlay_converges_while_nobody_knows_the_containers_and_leaves_them_as_they_are() {
    let (switch, mut hosts) = world(2, &trusting());
    let [one, two] = &hosts[..] else {
        unreachable!()
    };
    let entries = || one.netns.run("ip neigh show dev kontena nud permanent");
    let before = entries();
    // The agent is started anew while the engine of its host hangs.
    one.stop_agent();
    one.start_agent();
    let running = Running::start(one);
    let request = blind(one, &[one, two], 1);
    running.ask("the directory is applied", request, |state| {
        state.applied == Revision(1) && state.attached.is_empty()
    });
    assert_eq!(entries(), before, "what was there stays");
    one.containers[0]
        .netns
        .must_reach(two.containers[0].address);
    two.containers[0]
        .netns
        .must_reach(one.containers[0].address);

    // A node joins meanwhile.
    let three = Host::start(&switch, 3);
    hosts.push(three);
    let all: Vec<_> = hosts.iter().collect();
    let [one, two, three] = all[..] else {
        unreachable!()
    };
    running.request.send_replace(Arc::new(blind(one, &all, 2)));
    eventually("the new node is reached", || {
        for host in [two, three] {
            pass(&trusting(), host, &all);
        }
        one.containers[0].netns.ping(three.node.address)
    });
}

#[test]
fn overlay_goes_when_the_node_left_and_not_before_that_is_known() {
    let (_switch, hosts) = world(1, &trusting());
    let host = &hosts[0];
    let running = Running::start(host);
    let known = |state: &OverlayState| state.applied == Revision(1);
    running.ask("it is applied", blind(host, &[host], 1), known);
    // Nothing is known any more, as after a start without a directory.
    host.stop_agent();
    host.start_agent();
    let running = Running::start(host);
    running.ask("nothing is asked for", Request::default(), |state| {
        *state == OverlayState::default()
    });
    assert!(host.netns.run("ip -o link").contains("kontena:"));
    let left = Request {
        grid: Membership::Left,
        ..Request::default()
    };
    running.ask("it has left", left, |state| state.left);
    assert!(!host.netns.run("ip -o link").contains("kontena"));
    assert!(!host.netns.run("nft list tables").contains("kontena"));
}
