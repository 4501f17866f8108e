//! A network for tests and benchmarks: a switch with hosts, a few for a test ([`underlay`]) or as
//! many as a grid takes ([`large_topology`]).
//!
//! A host is a thread in a network namespace of its own. Namespaces have no names and vanish with
//! their threads and processes, also when a test panics. It needs root, and Debian's iproute2,
//! iputils-ping and nftables.
//!
//! A failure in here fails the test or benchmark that called it, so there are no errors to
//! return.
#![allow(clippy::unwrap_used)]

mod capture;
pub mod large_topology;
pub mod ping;

use std::io::{ErrorKind, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

pub use capture::{Seen, capture};

/// How long any state may take to be reached.
pub const BOUND: Duration = Duration::from_secs(10);

/// Waits until `look` succeeds; fails with its last error.
pub fn eventually<T>(what: &str, look: impl FnMut() -> Result<T, String>) -> T {
    within(BOUND, what, look)
}

/// The same with a longer bound than [`BOUND`], for what other programs delay.
pub fn within<T>(bound: Duration, what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(last) if start.elapsed() > bound => panic!("{what}: not within {bound:?}: {last}"),
            // Between two looks at a state, which have a bound.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// A network namespace that a task keeps alive.
#[derive(Clone, Debug)]
pub struct Netns {
    task: i32,
}

impl Netns {
    /// The id of the task that keeps it alive.
    pub fn task(&self) -> i32 {
        self.task
    }

    /// The namespace that a task keeps alive.
    pub fn of(task: i32) -> Self {
        Self { task }
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.task)
    }

    /// A program that will run inside, and is killed with the thread that starts it.
    pub fn command(&self, line: &str) -> Command {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        command.args(words).env("LC_ALL", "C");
        let namespace = std::fs::File::open(self.path()).unwrap();
        // SAFETY: both are system calls, which are allowed between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?)
            });
        }
        command
    }

    /// Runs a program inside, until it exits.
    pub fn output(&self, line: &str) -> Output {
        let mut command = self.command(line);
        command.output().unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    /// Runs a program that must succeed; returns its output.
    pub fn run(&self, line: &str) -> String {
        let output = self.output(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a program that must succeed, with this input.
    pub fn feed(&self, line: &str, input: &str) {
        let mut command = self.command(line);
        let mut child = command
            .stdin(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{line}: {e}"));
        let mut stdin = child.stdin.take().expect("it is piped");
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);
        let status = child.wait().unwrap();
        assert!(status.success(), "{line}: {status}");
    }

    /// Runs a function on a new thread inside.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(self.path()).unwrap();
        let inside = move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// Whether a ping is answered.
    pub fn ping(&self, to: Ipv4Addr) -> Result<(), String> {
        let output = self.output(&format!("ping -n -c 1 -W 1 {to}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            Ok(())
        } else {
            Err(text)
        }
    }

    /// Fails unless pings are answered soon.
    pub fn must_reach(&self, to: Ipv4Addr) {
        eventually(&format!("ping {to}"), || self.ping(to));
    }
}

/// A switch: the network between hosts.
pub struct Switch {
    /// Its namespace.
    pub netns: Netns,
    _keeper: Keeper,
}

impl Switch {
    /// A switch without hosts.
    pub fn start() -> Self {
        let (keeper, netns) = Keeper::start();
        netns.run("ip link add sw type bridge mcast_snooping 0");
        netns.run("ip link set sw up");
        let switch = Self {
            netns,
            _keeper: keeper,
        };
        switch.filter_nothing();
        switch
    }

    /// Keeps the kernel's packet filters off bridged frames, as on any switch. A filter module
    /// that is loaded later starts with them on.
    pub fn filter_nothing(&self) {
        self.netns.inside(|| {
            for filter in ["arptables", "ip6tables", "iptables"] {
                let setting = format!("/proc/sys/net/bridge/bridge-nf-call-{filter}");
                match std::fs::write(&setting, "0") {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        panic!("{setting}: {error}")
                    }
                    _ => {}
                }
            }
        });
    }

    /// Gives a namespace an `eth0` on the switch with [`underlay`]'s address; the
    /// switch's end is `port` and the number.
    pub fn plug(&self, netns: &Netns, number: u8) {
        let port = format!("port{number}");
        let peer = netns.task;
        self.netns.run(&format!(
            "ip link add {port} type veth peer name eth0 netns {peer}"
        ));
        self.netns.run(&format!("ip link set {port} master sw up"));
        let ip = underlay(number);
        netns.run(&format!("ip addr add {ip}/24 dev eth0"));
        netns.run("ip link set eth0 up");
    }
}

/// Keeps a namespace alive until it is dropped.
pub struct Keeper {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Keeper {
    /// Makes a namespace, with `lo` up.
    pub fn start() -> (Self, Netns) {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (give, receive) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make network namespaces");
            give.send(nix::unistd::gettid().as_raw()).unwrap();
            while let Ok(job) = inbox.recv() {
                job();
            }
        });
        let netns = Netns {
            task: receive.recv().unwrap(),
        };
        netns.run("ip link set lo up");
        (
            Self {
                jobs: Some(jobs),
                thread: Some(thread),
            },
            netns,
        )
    }

    /// Runs a function on the keeper's thread.
    pub fn run<T, F>(&self, work: F) -> T
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (give, receive) = mpsc::channel();
        let job: Job = Box::new(move || drop(give.send(work())));
        self.jobs.as_ref().unwrap().send(job).unwrap();
        receive.recv().expect("the job ends without a panic")
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let _ = self.thread.take().unwrap().join();
    }
}

/// The address of a host on the switch: 198.51.100.`number` (TEST-NET-2, RFC 5737).
pub fn underlay(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, number)
}

/// Counts packets that arrive at a device, before any filter.
pub fn count(netns: &Netns, device: &str, what: &str) {
    netns.run("nft add table netdev probe");
    netns.run(&format!(
        "nft add chain netdev probe in {{ type filter hook ingress device {device} priority -500 ; }}"
    ));
    netns.run(&format!("nft add rule netdev probe in {what} counter"));
}

/// How many were counted.
pub fn counted(netns: &Netns) -> u64 {
    packets(&netns.run("nft -j list chain netdev probe in"))
}

/// Sends a raw frame from a device.
pub fn send(netns: &Netns, device: &str, frame: &[u8]) {
    send_all(netns, device, &[frame]);
}

/// Sends raw frames from a device, as fast as one task can.
pub fn send_all(netns: &Netns, device: &str, frames: &[impl AsRef<[u8]> + Sync]) {
    let device = std::ffi::CString::new(device).unwrap();
    netns.inside(|| {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        for frame in frames.iter().map(AsRef::as_ref) {
            // SAFETY: a `sockaddr_ll` of zeroes is one, and every pointer is valid for
            // the length beside it during its call.
            let sent = unsafe {
                let mut to: libc::sockaddr_ll = std::mem::zeroed();
                to.sll_family = libc::AF_PACKET as u16;
                to.sll_ifindex = libc::if_nametoindex(device.as_ptr()).cast_signed();
                libc::sendto(
                    socket.as_raw_fd(),
                    frame.as_ptr().cast(),
                    frame.len(),
                    0,
                    std::ptr::from_ref(&to).cast(),
                    size_of_val(&to) as libc::socklen_t,
                )
            };
            assert_eq!(sent, frame.len().cast_signed());
        }
    });
}

/// The first counter in the output of `nft -j list`.
pub fn packets(listing: &str) -> u64 {
    fn find(value: &serde_json::Value) -> Option<u64> {
        let counted = value["packets"].as_u64();
        let fields = value
            .as_object()
            .into_iter()
            .flat_map(|fields| fields.values());
        let items = value.as_array().into_iter().flatten();
        counted.or_else(|| fields.chain(items).find_map(find))
    }
    find(&serde_json::from_str(listing).unwrap()).expect("there is a counter")
}
