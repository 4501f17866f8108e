//! `.env.example` names every setting, and only those.

use std::collections::BTreeSet;

use crate::tree::{Text, read, rust};

/// The code of a file without its tests.
fn code(file: &Text) -> &str {
    file.text.split("#[cfg(test)]\nmod tests {").next().unwrap()
}

/// What the programs read from the environment: every name in quotes.
fn settings() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for part in ["api/src", "agent/src", "agent/weavewait", "cli/src"] {
        let files = rust(part);
        for file in files.iter().filter(|file| !file.is("tests.rs")) {
            let quoted = code(file).split('"');
            names.extend(quoted.filter(|text| is_setting(text)).map(str::to_owned));
        }
    }
    names
}

fn is_setting(text: &str) -> bool {
    text.strip_prefix("KONTENA_").is_some_and(|rest| {
        !rest.is_empty() && rest.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    })
}

#[test]
fn the_example_names_exactly_the_settings_of_the_programs() {
    let example = read(".env.example");
    let mut named = BTreeSet::new();
    for line in example
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let (name, _) = line
            .split_once('=')
            .unwrap_or_else(|| panic!("no setting: {line}"));
        assert!(named.insert(name.to_owned()), "{name} is there twice");
    }
    assert_eq!(named, settings());
}

#[test]
fn no_secret_of_the_example_is_real() {
    for line in read(".env.example").lines() {
        if let Some(secret) = line.strip_prefix("KONTENA_SECRET=") {
            assert!(secret.chars().all(|c| c == '0'), "{line}");
        }
    }
}
