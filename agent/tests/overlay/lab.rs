//! A small world for one test: a switch, hosts on it, containers in them.
//!
//! A host is a thread in a network namespace of its own with the overlay under
//! test; a container is a process in one. Namespaces have no names and vanish
//! with their threads and processes, also when a test panics.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kontena_agent::overlay::{Attachment, Overlay, OverlayError, OverlayIntent, OverlayReport};
use kontena_schema::agent::{Endpoint, GridSettings, NodeEntry};
use kontena_schema::ids::{GridId, LeaseNumber, NodeId, NodeNumber, PlacementId};
use kontena_schema::mac::Mac;
use kontena_schema::path::Site;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// How long anything may take to become so.
pub const BOUND: Duration = Duration::from_secs(10);

/// Waits until `look` finds something; fails with the last thing it said.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(last) if start.elapsed() > BOUND => panic!("{what}: not within {BOUND:?}: {last}"),
            // Between two looks at a state, which have a bound.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// A network namespace that somebody keeps alive.
#[derive(Clone, Debug)]
pub struct Place {
    task: i32,
}

impl Place {
    /// The task that keeps it alive, as the kernel numbers it.
    pub fn task(&self) -> i32 {
        self.task
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.task)
    }

    /// Runs a program to its end inside.
    pub fn output(&self, line: &str) -> Output {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        command.args(words).env("LC_ALL", "C");
        let namespace = std::fs::File::open(self.path()).unwrap();
        // SAFETY: `setns` is a system call, which is allowed between fork and exec.
        unsafe {
            command.pre_exec(move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?));
        }
        command.output().unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    /// Runs a program that must succeed; tells what it wrote.
    pub fn run(&self, line: &str) -> String {
        let output = self.output(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a function on a thread inside.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(self.path()).unwrap();
        let inside = move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// Whether one of a few pings is answered.
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

/// A container's first process.
pub struct Container {
    process: Child,
    pub place: Place,
    pub placement: PlacementId,
    pub address: Ipv4Addr,
    pub lease: LeaseNumber,
}

impl Container {
    pub fn start(id: i64, address: Ipv4Addr) -> Self {
        let mut command = Command::new("sleep");
        command.arg("infinity").stdin(Stdio::null());
        // SAFETY: both are system calls, which are allowed between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(unshare(CloneFlags::CLONE_NEWNET)?)
            });
        }
        // `spawn` returns after `exec`, so the namespace is there.
        let process = command.spawn().unwrap();
        let place = Place {
            task: process.id().cast_signed(),
        };
        place.run("ip link set lo up");
        Self {
            process,
            place,
            placement: PlacementId(id),
            address,
            lease: LeaseNumber(id),
        }
    }

    pub fn attachment(&self) -> Attachment {
        Attachment {
            pid: self.place.task,
            container_id: format!("c{}", self.placement),
            address: self.address,
            mac: Mac::of_lease(self.address, self.lease),
        }
    }

    pub fn endpoint(&self, node: NodeId) -> Endpoint {
        Endpoint {
            placement: self.placement,
            node,
            address: self.address,
            lease: self.lease,
            stack: None,
            service: "web".to_owned(),
            instance: 1,
            ready: true,
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The network between hosts.
pub struct Switch {
    place: Place,
    _keeper: Keeper,
}

/// Keeps a namespace alive until it is dropped.
struct Keeper {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

type Job = Box<dyn FnOnce(&tokio::runtime::Runtime) + Send>;

impl Keeper {
    fn start() -> (Self, Place) {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (give, take) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make network namespaces");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            give.send(nix::unistd::gettid().as_raw()).unwrap();
            while let Ok(job) = inbox.recv() {
                job(&runtime);
            }
        });
        let place = Place {
            task: take.recv().unwrap(),
        };
        place.run("ip link set lo up");
        (
            Self {
                jobs: Some(jobs),
                thread: Some(thread),
            },
            place,
        )
    }

    fn run<T, F>(&self, work: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(&tokio::runtime::Runtime) -> T + Send + 'static,
    {
        let (give, take) = mpsc::channel();
        let job: Job = Box::new(move |runtime| drop(give.send(work(runtime))));
        self.jobs.as_ref().unwrap().send(job).unwrap();
        take.recv().expect("the job ends without a panic")
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let _ = self.thread.take().unwrap().join();
    }
}

impl Switch {
    pub fn start() -> Self {
        let (keeper, place) = Keeper::start();
        place.run("ip link add sw type bridge mcast_snooping 0");
        place.run("ip link set sw up");
        Self {
            place,
            _keeper: keeper,
        }
    }
}

/// A host node.
pub struct Host {
    keeper: Keeper,
    pub place: Place,
    pub node: NodeEntry,
    pub containers: Vec<Container>,
}

impl Host {
    /// A host with underlay address 198.51.100.`number` on the switch.
    pub fn start(switch: &Switch, number: u8) -> Self {
        let (keeper, place) = Keeper::start();
        let port = format!("port{number}");
        let peer = place.task;
        switch.place.run(&format!(
            "ip link add {port} type veth peer name eth0 netns {peer}"
        ));
        switch
            .place
            .run(&format!("ip link set {port} master sw up"));
        let ip = underlay(number);
        place.run(&format!("ip addr add {ip}/24 dev eth0"));
        place.run("ip link set eth0 up");
        let site = Site {
            region: "lab".into(),
            public_ip: None,
            private_ip: Some(ip),
        };
        let node = NodeEntry {
            id: NodeId(number.into()),
            name: format!("node-{number}"),
            number: NodeNumber::try_from(number).unwrap(),
            address: Ipv4Addr::new(10, 81, 0, number),
            site,
        };
        Self {
            keeper,
            place,
            node,
            containers: Vec::new(),
        }
    }

    /// Starts a container with address 10.81.1.`id`.
    pub fn add_container(&mut self, id: u8) {
        self.containers
            .push(Container::start(id.into(), Ipv4Addr::new(10, 81, 1, id)));
    }

    /// One pass of a freshly started agent.
    pub fn reconcile(&self, intent: &OverlayIntent) -> OverlayReport {
        let intent = intent.clone();
        self.keeper.run(move |runtime| {
            runtime.block_on(async { Overlay::new().await.unwrap().reconcile(&intent).await })
        })
    }

    /// One pass that must succeed.
    pub fn must_reconcile(&self, intent: &OverlayIntent) -> OverlayReport {
        let report = self.reconcile(intent);
        assert!(
            report.errors.is_empty(),
            "{}: {:#?}",
            self.node.name,
            report.errors
        );
        assert!(
            report.attached.values().all(Result::is_ok),
            "{:?}",
            report.attached
        );
        report
    }

    /// Leaves the grid.
    pub fn remove_all(&self) -> Vec<OverlayError> {
        self.keeper.run(|runtime| {
            runtime.block_on(async { Overlay::new().await.unwrap().remove_all().await })
        })
    }
}

pub fn underlay(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, number)
}

/// Counts what arrives at a device, before any filter.
pub fn count(place: &Place, device: &str, what: &str) {
    place.run("nft add table netdev probe");
    place.run(&format!(
        "nft add chain netdev probe in {{ type filter hook ingress device {device} priority -500 ; }}"
    ));
    place.run(&format!("nft add rule netdev probe in {what} counter"));
}

/// How much of it arrived.
pub fn counted(place: &Place) -> u64 {
    packets(&place.run("nft -j list chain netdev probe in"))
}

/// Sends a frame as it is from a device.
pub fn send(place: &Place, device: &str, frame: &[u8]) {
    let device = std::ffi::CString::new(device).unwrap();
    let sent = place.inside(|| {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        // SAFETY: a `sockaddr_ll` of zeroes is one, and every pointer is valid for
        // the length beside it during its call.
        unsafe {
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
        }
    });
    assert_eq!(sent, frame.len().cast_signed());
}

/// How many packets or frames one of our own tables dropped.
pub fn dropped(host: &Host, counter: &str) -> u64 {
    let of_guard = ["dropped_sender", "dropped_arp"].contains(&counter);
    let family = if of_guard { "netdev" } else { "inet" };
    let list = format!("nft -j list counter {family} kontena {counter}");
    packets(&host.place.run(&list))
}

fn packets(listing: &str) -> u64 {
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

/// A grid that trusts these subnets.
pub fn grid(vni: u32, trusted: &[&str]) -> GridSettings {
    GridSettings {
        id: GridId(vni.into()),
        name: format!("grid-{vni}"),
        subnet: "10.81.0.0/19".parse().unwrap(),
        supernet: "10.81.0.0/17".parse().unwrap(),
        trusted_subnets: trusted
            .iter()
            .map(|subnet| subnet.parse().unwrap())
            .collect(),
        vni,
    }
}

/// The grid that trusts all hosts of the lab.
pub fn trusting() -> GridSettings {
    grid(7, &["198.51.100.0/24"])
}

/// What the directory of all these hosts asks of one of them.
pub fn intent(grid: &GridSettings, own: &Host, all: &[&Host]) -> OverlayIntent {
    let nodes = all.iter().map(|host| &host.node);
    let endpoints: Vec<Endpoint> = all
        .iter()
        .flat_map(|host| host.containers.iter().map(|c| c.endpoint(host.node.id)))
        .collect();
    let attachments: BTreeMap<_, _> = own
        .containers
        .iter()
        .map(|c| (c.placement, c.attachment()))
        .collect();
    OverlayIntent::from_directory(grid, &own.node, nodes, &endpoints, attachments)
}

/// One pass on every host, with what all of them have.
pub fn settle(grid: &GridSettings, all: &[&Host]) -> usize {
    all.iter()
        .map(|host| host.must_reconcile(&intent(grid, host, all)).steps_applied)
        .sum()
}

/// Hosts 1 to `count` with a container each, `settle`d.
pub fn world(count: u8, grid: &GridSettings) -> (Switch, Vec<Host>) {
    let switch = Switch::start();
    let hosts: Vec<Host> = (1..=count)
        .map(|number| {
            let mut host = Host::start(&switch, number);
            host.add_container(number);
            host
        })
        .collect();
    settle(grid, &hosts.iter().collect::<Vec<_>>());
    (switch, hosts)
}
