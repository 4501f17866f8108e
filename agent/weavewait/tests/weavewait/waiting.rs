//! `weavewait` in a network namespace of its own, and as a rule as the first
//! process of a PID namespace, which is what it is in a container.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(10);

pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < BOUND, "{what}: not within {BOUND:?}");
        // Between two looks at a state, which have a bound.
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn checked(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Every signal that a program can have a handler for. The C library keeps 32
/// and 33 to itself.
pub fn catchable() -> impl Iterator<Item = libc::c_int> {
    (1..32)
        .filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal))
        .chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

/// What the program is started with.
pub struct Setup {
    /// As the first process of a PID namespace.
    pub first: bool,
    pub ignored: Vec<libc::c_int>,
    pub blocked: Vec<libc::c_int>,
    pub terminal: Option<OwnedFd>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            first: true,
            ignored: Vec::new(),
            blocked: Vec::new(),
            terminal: None,
        }
    }
}

impl Setup {
    pub fn start(self, args: &[&str]) -> Waiting {
        let first = self.first;
        let mut command = Command::new(env!("CARGO_BIN_EXE_weavewait"));
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // SAFETY: `apply` makes system calls only, allowed between fork and exec.
        unsafe { command.pre_exec(move || self.apply()) };
        // The PID namespace is that of the children of one thread, which ends.
        let spawned = std::thread::spawn(move || {
            if first {
                // SAFETY: no pointers are passed.
                checked(unsafe { libc::unshare(libc::CLONE_NEWPID) })?;
            }
            command.spawn()
        });
        let child = spawned.join().expect("it does not panic");
        Waiting(child.expect("root may make namespaces"))
    }

    fn apply(&self) -> io::Result<()> {
        // SAFETY: no pointers are passed but those of local values, which are valid.
        unsafe {
            checked(libc::unshare(libc::CLONE_NEWNET))?;
            if let Some(terminal) = &self.terminal {
                libc::setsid();
                checked(libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0))?;
            }
            // The test itself may have been started without some.
            for signal in catchable() {
                libc::signal(signal, libc::SIG_DFL);
            }
            for signal in &self.ignored {
                libc::signal(*signal, libc::SIG_IGN);
            }
            let mut blocked: libc::sigset_t = std::mem::zeroed();
            for signal in &self.blocked {
                libc::sigaddset(&raw mut blocked, *signal);
            }
            checked(libc::sigprocmask(
                libc::SIG_SETMASK,
                &raw const blocked,
                std::ptr::null_mut(),
            ))
        }
    }
}

/// The running program, which goes with the test.
pub struct Waiting(Child);

impl Drop for Waiting {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Waiting {
    pub fn start(args: &[&str]) -> Self {
        Setup::default().start(args)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Runs `ip` inside.
    pub fn ip(&self, args: &str) {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        let mut command = Command::new("ip");
        command.args(args.split_whitespace());
        // SAFETY: `setns` is a system call, allowed between fork and exec.
        unsafe {
            command
                .pre_exec(move || checked(libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET)));
        }
        assert!(command.status().unwrap().success(), "ip {args}");
    }

    pub fn provide(&self) {
        self.ip("link add ethwe type veth peer name other");
        self.ip("link set other up");
        self.ip("link set ethwe up");
        self.ip("addr add 10.81.1.1/17 dev ethwe");
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.pid())).unwrap_or_default()
    }

    /// Waits until it sleeps in the kernel, waiting for a message.
    pub fn sleeps(&self) {
        eventually("it waits for a change", || {
            let call = self.file("syscall");
            let number = call
                .split_whitespace()
                .next()
                .and_then(|n| n.parse::<i64>().ok());
            number == Some(libc::SYS_recvfrom)
        });
        assert_eq!(
            self.file("comm").trim(),
            "weavewait",
            "it has not become the command"
        );
    }

    pub fn send(&self, signal: libc::c_int) {
        let pid = self.pid().cast_signed();
        // SAFETY: no pointers are passed, and the child has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    pub fn stdout(&mut self) -> std::process::ChildStdout {
        self.0.stdout.take().unwrap()
    }

    /// How it ended, and what it wrote.
    pub fn end(mut self, what: &str) -> (ExitStatus, String) {
        let mut status = None;
        eventually(what, || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        let mut text = String::new();
        let (mut out, mut err) = (self.stdout(), self.0.stderr.take().unwrap());
        out.read_to_string(&mut text).unwrap();
        err.read_to_string(&mut text).unwrap();
        (status.unwrap(), text)
    }
}
