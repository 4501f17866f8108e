//! The files of the tree.

use std::fs;
use std::path::{Path, PathBuf};

/// What is made and not written.
const MADE: [&str; 4] = [".git", ".kontena", "target", "results"];

/// The workspace's root.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap().canonicalize().unwrap()
}

/// A text file of the tree.
#[derive(Debug)]
pub struct Text {
    /// From the root, with slashes.
    pub path: String,
    /// What is in it.
    pub text: String,
}

impl Text {
    /// Whether its name ends so.
    pub fn is(&self, end: &str) -> bool {
        self.path.ends_with(end)
    }
}

/// Every text file below a directory of the tree; `""` is all of it.
pub fn texts(below: &str) -> Vec<Text> {
    let root = root();
    let mut found = Vec::new();
    let mut open = vec![root.join(below)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if MADE.contains(&entry.file_name().to_str().unwrap()) {
                continue;
            }
            if kind.is_dir() {
                open.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                let path = path
                    .strip_prefix(&root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.push(Text { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "there are no files below {below:?}");
    found
}

/// The Rust files below a directory.
pub fn rust(below: &str) -> Vec<Text> {
    texts(below)
        .into_iter()
        .filter(|text| text.is(".rs"))
        .collect()
}

/// The content of a file that must be there.
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|err| panic!("{path}: {err}"))
}
