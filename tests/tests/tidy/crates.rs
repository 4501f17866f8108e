//! The crates depend on each other as ARCHITECTURE.md draws them.

use std::collections::{BTreeMap, BTreeSet};

use crate::dependencies::{members, names};
use crate::tree::read;

/// Which crate of the tree depends on which, by their folders.
type Arrows = BTreeMap<String, BTreeSet<String>>;

/// The package's name of a manifest.
fn package(manifest: &str) -> String {
    let name = manifest
        .lines()
        .find_map(|line| line.strip_prefix("name = "));
    name.unwrap().trim_matches('"').to_owned()
}

/// What the manifests say. What only tests need is no arrow.
fn built() -> Arrows {
    let manifests = members();
    let folder = |path: &str| path.strip_suffix("/Cargo.toml").unwrap().to_owned();
    let folders: BTreeMap<_, _> = manifests
        .iter()
        .map(|file| (package(&file.text), folder(&file.path)))
        .collect();
    let of = |text: &str| {
        let (shipped, _) = text.split_once("[dev-dependencies]").unwrap_or((text, ""));
        let names = names(shipped, "dependencies");
        names
            .iter()
            .filter_map(|name| folders.get(name))
            .cloned()
            .collect()
    };
    manifests
        .iter()
        .map(|file| (folder(&file.path), of(&file.text)))
        .collect()
}

/// What the picture says: a line for each crate, `folder -> folder folder`.
fn drawn() -> Arrows {
    let text = read("ARCHITECTURE.md");
    let (_, picture) = text.split_once("## The crates").unwrap();
    let picture = picture.split("```").nth(1).unwrap();
    let lines = picture.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| {
            let (from, to) = line.split_once("->").unwrap_or((line, ""));
            let to = to.split_whitespace().map(str::to_owned).collect();
            (from.trim().to_owned(), to)
        })
        .collect()
}

#[test]
fn crates_depend_on_each_other_as_drawn() {
    assert_eq!(drawn(), built());
}
