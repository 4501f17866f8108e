//! Hosts with Debian's Docker engine (20.10, iptables-nft), which forwards nothing of others: `FORWARD` has the policy
//! `DROP`, and the bridge's frames pass it, too.

use std::process::{Child, Command};

use kontena_lab::Netns;

use super::host::{Host, Kind, finally, reaches, settle, world};
use super::stream::{ends, nothing_in_clear, streaming};
use kontena_overlay_lab::{grid, trusting};

/// The first rule where an engine leaves room for others.
const OURS: &str = "-A DOCKER-USER -i kontena -o kontena -j ACCEPT";

/// The engine of a host.
struct Engine {
    netns: Netns,
    process: Child,
}

impl Engine {
    fn start(host: &Host) -> Self {
        let own = format!("/run/engine-{}", host.node.number);
        let line = format!(
            "dockerd --host unix://{own}.sock --pidfile {own}.pid --exec-root {own} --data-root {own}-data \
             --storage-driver vfs --log-level warn"
        );
        let mut command = host.netns.command(&line);
        // The root is in memory, and nothing can be mounted over it.
        let process = command.env("DOCKER_RAMDISK", "1").spawn().unwrap();
        let netns = host.netns.clone();
        let engine = Self { netns, process };
        let ask = || {
            let mut command = Command::new("docker");
            command.args([
                "--host",
                &format!("unix://{own}.sock"),
                "version",
                "--format",
                "{{.Server.Version}}",
            ]);
            command.output().unwrap()
        };
        let version = finally("the engine answers", || {
            let output = ask();
            output
                .status
                .success()
                .then_some(output.stdout)
                .ok_or(format!("{:?}", output.stderr))
        });
        let version = String::from_utf8(version).unwrap();
        assert!(version.starts_with("20.10."), "{version}");
        engine
    }

    /// What the engine did to the packet filter, and that it bites.
    fn forwards_nothing(&self) {
        let rules = self.netns.run("iptables-nft -S");
        assert!(
            rules.contains("-P FORWARD DROP") && rules.contains("-N DOCKER-USER"),
            "{rules}"
        );
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // In order, so that what it started ends too.
        let pid = nix::unistd::Pid::from_raw(self.process.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

#[test]
fn an_engine_that_forwards_nothing_lets_the_overlay_pass() {
    let loaded = Command::new("modprobe")
        .arg("br_netfilter")
        .status()
        .unwrap();
    assert!(loaded.success());
    let closed = grid(7, &[]);
    let (switch, hosts) = world(&closed, &[Kind::Kernel, Kind::Sleeve]);
    switch.filter_nothing();
    let all: Vec<&Host> = hosts.iter().collect();
    let [from, to] = ends(&hosts);
    let host = &hosts[0];
    let engine = Engine::start(host);
    engine.forwards_nothing();
    host.netns
        .run("iptables-nft -D FORWARD -i kontena -o kontena -j ACCEPT");
    assert!(
        from.netns.ping(to.address).is_err(),
        "the policy must bite, or this shows nothing"
    );
    for grid in [&trusting(), &closed] {
        settle(grid, &all);
        let rules = host.netns.run("iptables-nft -S DOCKER-USER");
        assert_eq!(rules.lines().nth(1), Some(OURS), "{rules}");
        reaches(&from.netns, to.address);
    }
    // An engine that starts anew writes its rules anew.
    nothing_in_clear(&switch, || {
        streaming(&from, &to, |stream| {
            stream.goes_on();
            drop(engine);
            let engine = Engine::start(host);
            engine.forwards_nothing();
            settle(&closed, &all);
            stream.goes_on();
        });
    });
}
