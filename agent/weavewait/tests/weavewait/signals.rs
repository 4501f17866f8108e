//! Signals before and after the command has taken weavewait's place.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use crate::waiting::{Setup, Waiting, catchable, eventually};

#[test]
fn every_signal_ends_the_wait() {
    for signal in catchable().filter(|s| *s != libc::SIGCONT) {
        for first in [true, false] {
            let setup = Setup {
                first,
                ..Setup::default()
            };
            let waiting = setup.start(&["echo", "the command ran"]);
            waiting.sleeps();
            waiting.send(signal);
            let what = format!("signal {signal} ends it, first process: {first}");
            let (status, text) = waiting.end(&what);
            assert_eq!((status.code(), text.as_str()), (Some(128 + signal), ""));
        }
    }
}

#[test]
fn a_signal_ends_the_wait_though_the_container_was_started_without_it() {
    let signals = [libc::SIGTERM, libc::SIGINT, libc::SIGWINCH];
    for signal in signals {
        for blocks in [true, false] {
            let mut setup = Setup::default();
            let without = if blocks {
                &mut setup.blocked
            } else {
                &mut setup.ignored
            };
            without.extend(signals);
            let waiting = setup.start(&["true"]);
            waiting.sleeps();
            waiting.send(signal);
            let (status, _) = waiting.end(&format!("signal {signal} ends it, blocked: {blocks}"));
            assert_eq!(status.code(), Some(128 + signal));
        }
    }
}

#[test]
fn the_wait_goes_on_after_stop_and_continue() {
    let waiting = Waiting::start(&["true"]);
    waiting.sleeps();
    waiting.send(libc::SIGSTOP);
    waiting.send(libc::SIGCONT);
    waiting.provide();
    assert!(waiting.end("the command runs").0.success());
}

/// An orphan of `docker exec` becomes a child of the first process.
#[test]
fn the_wait_goes_on_when_a_child_ends() {
    let waiting = Waiting::start(&["true"]);
    waiting.sleeps();
    let pid = waiting.pid().to_string();
    let orphan = Command::new("nsenter")
        .args(["--pid", "--target", &pid, "sh", "-c", "true & exit 0"])
        .status();
    assert!(orphan.unwrap().success());
    eventually("the orphan has ended as its child", || {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap();
        children.split_whitespace().any(|child| {
            let status = std::fs::read_to_string(format!("/proc/{child}/status"));
            status.unwrap_or_default().contains("State:\tZ")
        })
    });
    waiting.provide();
    assert!(waiting.end("the command runs").0.success());
}

#[test]
fn the_wait_goes_on_when_its_terminal_changes_size() {
    let (mut ours, mut its) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: both places are valid, and null asks for the defaults.
    let opened =
        unsafe { libc::openpty(&raw mut ours, &raw mut its, none, none.cast(), none.cast()) };
    assert_eq!(opened, 0);
    // SAFETY: both were just opened and belong to nobody else.
    let (ours, its) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(its)) };
    let setup = Setup {
        terminal: Some(its),
        ..Setup::default()
    };
    let waiting = setup.start(&["true"]);
    waiting.sleeps();
    let size = libc::winsize {
        ws_row: 10,
        ws_col: 20,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: `size` is valid and outlives the call.
    assert_eq!(
        unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) },
        0
    );
    waiting.provide();
    assert!(waiting.end("the command runs").0.success());
}

#[test]
fn the_command_gets_every_signal() {
    let signals: Vec<String> = catchable().map(|s| s.to_string()).collect();
    let script =
        r#"for s; do trap "echo $s" "$s"; done; sleep 1000 & echo ready; while :; do wait; done"#;
    let mut args = vec!["sh", "-c", script, "sh"];
    args.extend(signals.iter().map(String::as_str));
    let mut waiting = Waiting::start(&args);
    waiting.sleeps();
    waiting.provide();
    let mut lines = BufReader::new(waiting.stdout()).lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some("ready"));
    for signal in catchable() {
        waiting.send(signal);
        assert_eq!(lines.next(), Some(signal.to_string()));
    }
}

#[test]
fn the_command_starts_with_the_signals_that_weavewait_was_given() {
    let rt = libc::SIGRTMIN() + 3;
    let given = [
        Setup::default(),
        Setup {
            ignored: vec![libc::SIGPIPE, libc::SIGINT, libc::SIGCHLD, rt],
            blocked: vec![libc::SIGTERM, libc::SIGUSR1, libc::SIGRTMAX()],
            ..Setup::default()
        },
    ];
    let set = |signals: &[libc::c_int]| signals.iter().fold(0_u64, |set, s| set | (1 << (s - 1)));
    let all = set(&catchable().collect::<Vec<_>>());
    for setup in given {
        let expected = [set(&setup.blocked), set(&setup.ignored), 0];
        let waiting = setup.start(&["cat", "/proc/self/status"]);
        waiting.sleeps();
        waiting.provide();
        let (_, text) = waiting.end("the command runs");
        let found = ["SigBlk:", "SigIgn:", "SigCgt:"].map(|name| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap() & all
        });
        assert_eq!(found, expected);
    }
}

#[test]
fn an_ordinary_process_dies_of_a_broken_pipe() {
    let setup = Setup {
        first: false,
        ..Setup::default()
    };
    let waiting = setup.start(&["sh", "-c", "kill -PIPE $$; echo not reached"]);
    waiting.provide();
    let (status, text) = waiting.end("the command runs");
    assert_eq!((status.signal(), text.as_str()), (Some(libc::SIGPIPE), ""));
}
