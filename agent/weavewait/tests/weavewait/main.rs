//! The real program in namespaces of its own. Root is needed; a test that lacks
//! a right fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod signals;
mod waiting;

use waiting::Waiting;

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
    let (status, text) = waiting.end("the command runs");
    assert!(
        status.success() && text.contains("10.81.1.1/17"),
        "{status} {text}"
    );
}

#[test]
fn weavewait_does_not_start_on_another_interface() {
    let waiting = Waiting::start(&["true"]);
    waiting.ip("link add ethwe0 type veth peer name other");
    waiting.ip("link set other up");
    waiting.ip("link set ethwe0 up");
    waiting.ip("addr add 10.81.1.1/17 dev ethwe0");
    waiting.sleeps();
}

#[test]
fn weavewait_passes_on_arguments_and_environment() {
    let script = "printf '%s|' \"$@\" \"$KONTENA_TEST\" $$";
    let waiting = Waiting::start(&[
        "env",
        "KONTENA_TEST=x y",
        "sh",
        "-c",
        script,
        "sh",
        "a b",
        "",
    ]);
    waiting.provide();
    let (status, text) = waiting.end("the command runs");
    assert!(status.success(), "{status}");
    assert_eq!(text, "a b||x y|1|", "the command is the first process");
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
        let (status, text) = waiting.end("it gives up");
        assert_eq!(status.code(), Some(code), "{text}");
        assert!(text.contains(program), "{text}");
    }
    let (status, text) = Waiting::start(&[]).end("it gives up");
    assert_eq!(status.code(), Some(125), "{text}");
}
