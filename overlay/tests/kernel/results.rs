//! The results of the tests inside the machine. It is pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::machine::Output;

/// How much of the console is shown of a machine that failed.
const TAIL_LINES: usize = 60;

/// What a kernel says that gives up because a processor runs nothing else any more.
const STUCK: &str = "BUG: soft lockup";

/// Whether a processor of the machine got stuck in its kernel, and no test had failed before.
pub fn is_stuck(output: &Output) -> bool {
    let failed = results(&output.program)
        .into_values()
        .any(|result| result == "FAILED");
    output.console.contains(STUCK) && !failed
}

/// Whether these tests ran inside the machine, and no others, and all succeeded; else everything that is known.
pub fn all_succeeded(wanted: &BTreeSet<String>, output: &Output) -> Result<(), String> {
    let results = results(&output.program);
    let mut faults: Vec<String> = output.ended.iter().cloned().collect();
    for name in wanted {
        match results.get(name.as_str()) {
            Some(&"ok") => {}
            Some(result) => faults.push(format!("{name}: {result}")),
            None => faults.push(format!("{name}: no result")),
        }
    }
    let others = results.keys().filter(|name| !wanted.contains(**name));
    faults.extend(others.map(|name| format!("{name}: nobody knows it")));
    if !output.program.lines().any(|line| line == "exit 0") {
        faults.push("the program did not end with exit 0".to_owned());
    }
    if wanted.is_empty() {
        faults.push("there are no tests".to_owned());
    }
    if faults.is_empty() {
        return Ok(());
    }
    let console: Vec<&str> = output.console.lines().collect();
    let tail = &console[console.len().saturating_sub(TAIL_LINES)..];
    Err(format!(
        "{}\n\nthe output of the tests:\n{}\n\nthe end of the console:\n{}",
        faults.join("\n"),
        output.program,
        tail.join("\n")
    ))
}

/// The result of each test that began. Its name is written first, so one that never ended has an empty one.
fn results(program: &str) -> BTreeMap<&str, &str> {
    let lines = program
        .lines()
        .filter_map(|line| line.strip_prefix("test "));
    lines
        .filter_map(|line| line.split_once(" ..."))
        .map(|(name, result)| (name, result.trim()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(program: &str, ended: Option<&str>) -> Result<(), String> {
        let output = Output {
            program: program.to_owned(),
            console: "a kernel's last words".to_owned(),
            ended: ended.map(str::to_owned),
        };
        all_succeeded(
            &["guest::a".to_owned(), "guest::b".to_owned()].into(),
            &output,
        )
    }

    const BOTH: &str = "running 2 tests\ntest guest::a ... ok\ntest guest::b ... ok\n\n";

    #[test]
    fn tests_that_all_succeeded_are_enough() {
        assert_eq!(check(&format!("{BOTH}exit 0\n"), None), Ok(()));
    }

    #[test]
    fn anything_less_is_a_failure_with_the_end_of_the_console() {
        let failing = "test guest::a ... ok\ntest guest::b ... FAILED\nexit 101\n";
        let hanging = "test guest::a ... ok\ntest guest::b ...";
        let lacking = "test guest::a ... ok\nexit 0\n";
        let others = format!("{BOTH}test guest::c ... ok\nexit 0\n");
        for (program, ended, fault) in [
            ("", Some("no output for 600s"), "no output"),
            ("", None, "guest::a: no result"),
            (BOTH, None, "did not end with exit 0"),
            (failing, None, "guest::b: FAILED"),
            (hanging, Some("killed"), "guest::b: \n"),
            (lacking, None, "guest::b: no result"),
            (&others, None, "guest::c: nobody knows it"),
        ] {
            let failure = check(program, ended).unwrap_err();
            assert!(failure.contains(fault), "{fault} in {failure}");
            assert!(failure.contains("a kernel's last words"), "{failure}");
        }
    }

    #[test]
    fn a_stuck_processor_is_told_by_the_kernel() {
        let after = |program: &str, console: &str| Output {
            program: program.to_owned(),
            console: console.to_owned(),
            ended: None,
        };
        let of = |console| after("test guest::a ... ok\ntest guest::b ...", console);
        let stuck = "[  151.4] watchdog: BUG: soft lockup - CPU#1 stuck for 130s! [kworker/1:2:61]";
        assert!(is_stuck(&of(stuck)));
        let failed = "test guest::a ... FAILED\ntest guest::b ...";
        assert!(!is_stuck(&after(failed, stuck)), "that counts");
        assert!(!is_stuck(&of("[  151.4] the tests ended after 151 s")));
    }
}
