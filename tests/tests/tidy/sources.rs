//! What every source file is like.

use std::collections::BTreeSet;

use crate::tree::{read, rust, texts};

/// Longer ones are two files.
const LINES_MAX: usize = 500;

#[test]
fn no_rust_file_is_too_long() {
    let long: Vec<_> = rust("")
        .into_iter()
        .map(|file| (file.text.lines().count(), file.path))
        .filter(|(lines, _)| *lines > LINES_MAX)
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn nothing_is_of_one_machine() {
    // In pieces, so that this file does not hold them.
    let words = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/Use", "rs/"),
    ];
    let mut found = Vec::new();
    for file in texts("").iter().filter(|file| !file.is("Cargo.lock")) {
        for (line, number) in file.text.lines().zip(1..) {
            // The init process's view of its root is the same on every machine.
            let line = line.replace("/proc/1/root", "");
            if words.iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{number}: {line}", file.path));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn images_are_built_on_our_own_base_alone() {
    let mut seen = 0;
    for file in texts("infra/images")
        .iter()
        .filter(|file| file.is("/Dockerfile"))
    {
        seen += 1;
        for line in file.text.lines().filter(|line| line.starts_with("FROM ")) {
            assert!(
                ["FROM ${BASE}", "FROM scratch"].contains(&line),
                "{}: {line}",
                file.path
            );
        }
    }
    assert!(seen >= 10, "only {seen} images were found");
}

#[test]
fn every_query_is_listed_named_and_used() {
    let list = read("schema/src/query.rs");
    let listed: Vec<(&str, &str)> = list
        .lines()
        .filter_map(|line| line.trim().split_once(" = \""))
        .filter_map(|(constant, rest)| Some((constant, rest.strip_suffix("\",")?)))
        .collect();
    let names: BTreeSet<String> = listed.iter().map(|(_, name)| (*name).to_owned()).collect();
    let mut files = BTreeSet::new();
    for file in texts("schema/queries") {
        let name = file
            .path
            .rsplit('/')
            .next()
            .unwrap()
            .strip_suffix(".sql")
            .unwrap();
        assert_eq!(
            file.text.lines().next(),
            Some(format!("-- {name}").as_str()),
            "{}",
            file.path
        );
        files.insert(name.to_owned());
    }
    assert_eq!(files, names);
    let api: String = rust("api/src").into_iter().map(|file| file.text).collect();
    let words: BTreeSet<&str> = api
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .collect();
    let unused: Vec<_> = listed
        .iter()
        .filter(|(constant, _)| !words.contains(constant))
        .collect();
    assert!(unused.is_empty(), "{unused:?}");
}

#[test]
fn no_test_is_skipped() {
    let skip = concat!("#[ig", "nore");
    let skipped: Vec<_> = rust("")
        .into_iter()
        .filter(|file| file.text.contains(skip))
        .map(|file| file.path)
        .collect();
    assert!(skipped.is_empty(), "{skipped:#?}");
}

/// Where a host's tasks are; `task/` is the one way to start them.
const TASKS: [&str; 3] = ["agent", "overlay", "sleeve"];

#[test]
fn every_task_of_a_host_is_started_by_the_helper() {
    let starts = [
        "tokio::spawn",
        "task::spawn(",
        "spawn_local",
        "handle().spawn",
        "JoinSet",
    ];
    let mut found = Vec::new();
    for file in TASKS
        .into_iter()
        .flat_map(|part| rust(&format!("{part}/src")))
    {
        // A file's tests are a module at its end, or in a file of their own.
        let code = file
            .text
            .split("\n#[cfg(test)]\nmod ")
            .next()
            .unwrap_or_default();
        if file.is("tests.rs") {
            continue;
        }
        let lines = code.lines().zip(1..);
        let bare = lines.filter(|(line, _)| starts.iter().any(|start| line.contains(start)));
        found.extend(bare.map(|(line, number)| format!("{}:{number}: {line}", file.path)));
    }
    assert!(found.is_empty(), "{found:#?}");
}
