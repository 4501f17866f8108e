//! Every dependency has a use.

use std::collections::BTreeSet;

use crate::tree::{Text, read, rust, texts};

/// The names in sections of a manifest whose title ends so.
pub fn names(manifest: &str, title: &str) -> Vec<String> {
    let mut inside = false;
    let mut names = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.trim_matches(['[', ']']).ends_with(title);
        } else if inside
            && !line.starts_with('#')
            && let Some((name, _)) = line.split_once(['=', '.'])
        {
            names.push(name.trim().to_owned());
        }
    }
    names
}

/// Whether a crate is named in code: with a path behind it, and nothing of a
/// longer name before it.
fn names_crate(file: &Text, name: &str) -> bool {
    let path = format!("{}::", name.replace('-', "_"));
    file.text.match_indices(&path).any(|(at, _)| {
        let before = file.text[..at].chars().next_back();
        !before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
    })
}

/// Cargo's manifests of the members.
pub fn members() -> Vec<Text> {
    let manifests = texts("").into_iter().filter(|file| file.is("/Cargo.toml"));
    manifests.collect()
}

#[test]
fn every_dependency_of_a_member_is_named_in_its_code() {
    let mut unused = Vec::new();
    for manifest in members() {
        let folder = manifest.path.strip_suffix("/Cargo.toml").unwrap();
        let files = rust(folder);
        for name in names(&manifest.text, "dependencies") {
            if !files.iter().any(|file| names_crate(file, &name)) {
                unused.push(format!("{folder}: {name}"));
            }
        }
    }
    assert!(unused.is_empty(), "{unused:#?}");
}

#[test]
fn every_dependency_of_the_workspace_has_a_member() {
    let used: BTreeSet<String> = members()
        .iter()
        .flat_map(|manifest| names(&manifest.text, "dependencies"))
        .collect();
    let unused: Vec<_> = names(&read("Cargo.toml"), "workspace.dependencies")
        .into_iter()
        .filter(|name| !used.contains(name))
        .collect();
    assert!(unused.is_empty(), "{unused:#?}");
}
