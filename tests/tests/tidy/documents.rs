//! What documents name is there.

use std::path::Path;

use crate::tree::{Text, read, root, texts};

fn documents() -> Vec<Text> {
    texts("")
        .into_iter()
        .filter(|text| text.is(".md"))
        .collect()
}

/// What stands between two marks, once for each pair, outside of blocks of code.
fn between<'a>(text: &'a str, open: &'a str, close: char) -> impl Iterator<Item = &'a str> {
    let prose = text.split("```").step_by(2);
    prose
        .flat_map(move |prose| {
            prose
                .split(open)
                .skip(1)
                .filter_map(move |rest| rest.split_once(close))
        })
        .map(|(inside, _)| inside)
}

/// What stands in backticks, outside of blocks of code.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(|prose| prose.split('`').skip(1).step_by(2))
}

/// A path in the tree: with a slash, of the characters of paths, and neither a
/// placeholder nor something that is made.
fn is_path(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/_.-".contains(c);
    text.contains('/')
        && text.chars().all(plain)
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && !text.contains("noun_verb")
        && !text.contains("NAME")
        && !text.contains("/results/")
}

/// READMEs also name things of the user's, with slashes; their paths are those
/// whose first part is in the tree. In other documents everything must be there.
fn is_meant(document: &Text, path: &str) -> bool {
    let first = path.split('/').next().unwrap();
    is_path(path) && (!document.is("README.md") || exists(document, first))
}

fn exists(document: &Text, path: &str) -> bool {
    let folder = Path::new(&document.path).parent().unwrap();
    root().join(path).exists() || root().join(folder).join(path).exists()
}

#[test]
fn every_link_leads_somewhere() {
    let mut missing = Vec::new();
    for document in documents() {
        for link in between(&document.text, "](", ')') {
            let path = link.split('#').next().unwrap();
            if !link.contains("://") && !path.is_empty() && !exists(&document, path) {
                missing.push(format!("{}: {link}", document.path));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_path_in_backticks_exists() {
    let mut missing = Vec::new();
    let mut seen = 0;
    for document in documents() {
        for path in quoted(&document.text).filter(|text| is_meant(&document, text)) {
            seen += 1;
            if !exists(&document, path) {
                missing.push(format!("{}: {path}", document.path));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(seen > 30, "only {seen} paths were found in the documents");
}

#[test]
fn the_walk_of_a_change_is_numbered_and_each_step_names_its_place() {
    let text = read("ARCHITECTURE.md");
    let (_, walk) = text.split_once("## The walk of a change").unwrap();
    let (walk, _) = walk.split_once("\n## ").unwrap();
    let mut steps: Vec<String> = Vec::new();
    for line in walk.lines() {
        let number = format!("{}. ", steps.len() + 1);
        if line.starts_with(&number) {
            steps.push(line.to_owned());
        } else if let Some(step) = steps.last_mut() {
            assert!(
                line.is_empty() || line.starts_with("   "),
                "not {number}: {line}"
            );
            step.push_str(line);
        }
    }
    assert_eq!(steps.len(), 9, "{steps:#?}");
    for step in &steps {
        assert!(quoted(step).any(is_path), "no path in: {step}");
    }
}
