//! The real program in network namespaces of its own. Root is needed; a test
//! that lacks a right fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(10);

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < BOUND, "{what}: not within {BOUND:?}");
        // Between two looks at a state, which have a bound.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `weavewait` with these arguments, in a namespace of its own.
struct Waiting(Child);

impl Waiting {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weavewait"));
        command
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // SAFETY: `unshare` is a system call, allowed between fork and exec.
        unsafe {
            command.pre_exec(|| match libc::unshare(libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        Self(command.spawn().expect("root may make network namespaces"))
    }

    /// Runs `ip` inside.
    fn ip(&self, args: &str) {
        let namespace = File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        let mut command = Command::new("ip");
        command.args(args.split_whitespace());
        // SAFETY: `setns` is a system call, allowed between fork and exec.
        unsafe {
            command.pre_exec(move || {
                match libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        assert!(command.status().unwrap().success(), "ip {args}");
    }

    /// Waits until it sleeps in the kernel, waiting for a message.
    fn sleeps(&self) {
        let file = |name: &str| {
            std::fs::read_to_string(format!("/proc/{}/{name}", self.0.id())).unwrap_or_default()
        };
        eventually("it waits for a change", || {
            let call = file("syscall");
            let number = call
                .split_whitespace()
                .next()
                .and_then(|n| n.parse::<i64>().ok());
            number == Some(libc::SYS_recvfrom)
        });
        assert_eq!(
            file("comm").trim(),
            "weavewait",
            "it has not become the command"
        );
    }

    fn end(mut self) -> (std::process::ExitStatus, String) {
        let mut text = String::new();
        self.0
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        self.0
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        (self.0.wait().unwrap(), text)
    }

    fn provide(&self) {
        self.ip("link add ethwe type veth peer name other");
        self.ip("link set other up");
        self.ip("link set ethwe up");
        self.ip("addr add 10.81.1.1/17 dev ethwe");
    }
}

#[test]
fn weavewait_starts_the_command_when_the_interface_is_up_with_an_address() {
    let waiting = Waiting::start(&["ip", "-o", "-4", "addr", "show", "ethwe"]);
    waiting.sleeps();
    waiting.ip("link set lo up");
    waiting.sleeps();
    waiting.ip("link add ethwe type veth peer name other");
    waiting.sleeps();
    waiting.ip("addr add 10.81.1.1/17 dev ethwe");
    waiting.sleeps();
    waiting.ip("link set ethwe up");
    // Its other end is down: nothing could be sent.
    waiting.sleeps();
    waiting.ip("link set other up");
    let (status, text) = waiting.end();
    assert!(
        status.success() && text.contains("10.81.1.1/17"),
        "{status} {text}"
    );
}

#[test]
fn weavewait_does_not_start_on_another_interface() {
    let mut waiting = Waiting::start(&["true"]);
    waiting.ip("link add ethwe0 type veth peer name other");
    waiting.ip("link set other up");
    waiting.ip("link set ethwe0 up");
    waiting.ip("addr add 10.81.1.1/17 dev ethwe0");
    waiting.sleeps();
    waiting.0.kill().unwrap();
    waiting.0.wait().unwrap();
}

#[test]
fn weavewait_hands_on_arguments_environment_and_signals() {
    let script = "printf '%s|' \"$@\"; kill -PIPE $$; echo not reached";
    let waiting = Waiting::start(&["sh", "-c", script, "sh", "a b", "", "c"]);
    waiting.provide();
    let (status, text) = waiting.end();
    assert_eq!(text, "a b||c|");
    assert_eq!(
        status.signal(),
        Some(libc::SIGPIPE),
        "the command gets signals as ever"
    );
}

#[test]
fn weavewait_tells_like_a_shell_what_it_cannot_run() {
    for (program, code) in [
        ("/no/such/program", 127),
        ("no-such-program", 127),
        ("/etc/passwd", 126),
    ] {
        let waiting = Waiting::start(&[program]);
        waiting.provide();
        let (status, text) = waiting.end();
        assert_eq!(status.code(), Some(code), "{text}");
        assert!(text.contains(program), "{text}");
    }
    let (status, text) = Waiting::start(&[]).end();
    assert_eq!(status.code(), Some(125), "{text}");
}

#[test]
fn weavewait_ends_when_told_while_it_waits() {
    let waiting = Waiting::start(&["true"]);
    waiting.sleeps();
    let pid = waiting.0.id().cast_signed();
    // SAFETY: no pointers are passed, and the child has not been waited for.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    let (status, _) = waiting.end();
    assert_eq!(status.code(), Some(128 + libc::SIGTERM));
}
