//! The one test that runs where all others do: it boots the machine once, for all tests of `guest`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::{machine, results};

/// What the names of the tests inside begin with.
const INSIDE: &str = "guest::";

/// The tests that this program has for the machine.
fn wanted(program: &Path) -> BTreeSet<String> {
    let list = Command::new(program)
        .args(["--list", INSIDE])
        .output()
        .unwrap();
    assert!(list.status.success(), "{list:?}");
    let list = String::from_utf8(list.stdout).unwrap();
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    names
        .filter(|name| name.starts_with(INSIDE))
        .map(str::to_owned)
        .collect()
}

#[test]
fn overlay_holds_on_a_kernel_with_wireguard() {
    let program = std::env::current_exe().unwrap();
    let output = machine::run(&program, &[INSIDE, "--test-threads=1", "--color=never"]);
    if let Err(failure) = results::all_succeeded(&wanted(&program), &output) {
        panic!("{failure}");
    }
    println!("{}", output.program);
}
