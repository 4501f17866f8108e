//! Modules form no circle: of two modules, one may know the other, and a parent its
//! children and they it.
//!
//! What a module names is what its `use` items and its absolute paths (`crate::`,
//! `super::`) lead to. A name that only passes through (`pub use`) is followed to where it
//! is defined, so that a circle cannot hide behind a parent. Tests do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::Visit;
use syn::{Attribute, Item, UseTree};

use crate::tree::root;

/// A module's path in its crate, without the crate's own name.
type Module = Vec<String>;

/// The crates of a host. None has a circle, neither between files nor between folders.
const WITHOUT_CIRCLES: [&str; 7] = [
    "agent",
    "agent/weavewait",
    "lab",
    "overlay",
    "overlay/lab",
    "sleeve",
    "task",
];

/// What is known of one module.
#[derive(Default)]
struct Contents {
    /// Every path that it names, from the crate's root.
    named: Vec<Module>,
    /// What its imports are called, and where they lead.
    imports: BTreeMap<String, Module>,
}

/// The modules of a crate.
#[derive(Default)]
struct Crate {
    modules: BTreeMap<Module, Contents>,
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let list = attribute.meta.require_list();
        attribute.path().is_ident("cfg")
            && list.is_ok_and(|list| {
                let text = list.tokens.to_string();
                text == "test" || text.contains("fuzzing")
            })
    })
}

fn path_of(attributes: &[Attribute]) -> Option<String> {
    let attribute = attributes.iter().find(|a| a.path().is_ident("path"))?;
    let value = &attribute.meta.require_name_value().ok()?.value;
    let syn::Expr::Lit(literal) = value else {
        return None;
    };
    match &literal.lit {
        syn::Lit::Str(text) => Some(text.value()),
        _ => None,
    }
}

impl Crate {
    fn read(folder: &str) -> Self {
        let source = root().join(folder).join("src");
        let mut found = Self::default();
        for start in ["lib.rs", "main.rs"] {
            let file = source.join(start);
            if file.exists() {
                found.file(&file, &source, &Vec::new());
            }
        }
        assert!(!found.modules.is_empty(), "{folder} has no modules");
        found
    }

    /// Reads a file; its children are in `folder`.
    fn file(&mut self, file: &Path, folder: &Path, module: &Module) {
        let text =
            std::fs::read_to_string(file).unwrap_or_else(|err| panic!("{}: {err}", file.display()));
        let parsed =
            syn::parse_file(&text).unwrap_or_else(|err| panic!("{}: {err}", file.display()));
        self.items(&parsed.items, folder, module);
    }

    fn items(&mut self, items: &[Item], folder: &Path, module: &Module) {
        self.modules.entry(module.clone()).or_default();
        for item in items {
            match item {
                Item::Mod(child) if is_test(&child.attrs) => {}
                Item::Mod(child) => {
                    let name = child.ident.to_string();
                    let path = [&module[..], std::slice::from_ref(&name)].concat();
                    match &child.content {
                        Some((_, items)) => self.items(items, &folder.join(&name), &path),
                        None => {
                            let (file, folder) = places(folder, &name, path_of(&child.attrs));
                            self.file(&file, &folder, &path);
                        }
                    }
                }
                Item::Fn(function) if is_test(&function.attrs) => {}
                Item::Use(item) if is_test(&item.attrs) => {}
                Item::Use(item) => self.import(&item.tree, module),
                other => self.visit(other, module),
            }
        }
    }

    fn import(&mut self, tree: &UseTree, module: &Module) {
        let mut leaves = Vec::new();
        flatten(tree, &mut Vec::new(), &mut leaves);
        for (name, path) in leaves {
            // What begins with no such word is of a child, or of another crate.
            let relative = || [&module[..], &path[..]].concat();
            let path = absolute(&path, module).unwrap_or_else(relative);
            let contents = self.modules.entry(module.clone()).or_default();
            contents.named.push(path.clone());
            contents.imports.insert(name, path);
        }
    }

    fn visit(&mut self, item: &Item, module: &Module) {
        let mut paths = Paths::default();
        paths.visit_item(item);
        let contents = self.modules.entry(module.clone()).or_default();
        let named = paths.0.iter().filter_map(|path| absolute(path, module));
        contents.named.extend(named);
    }

    /// The module in which a path ends.
    fn resolve(&self, path: &Module, depth: usize) -> Module {
        let mut at = Vec::new();
        for (index, name) in path.iter().enumerate() {
            let child = [&at[..], std::slice::from_ref(name)].concat();
            if self.modules.contains_key(&child) {
                at = child;
                continue;
            }
            let import = self.modules.get(&at).and_then(|m| m.imports.get(name));
            return match import.filter(|import| *import != path && depth < 16) {
                Some(import) => {
                    let rest = [&import[..], &path[index + 1..]].concat();
                    self.resolve(&rest, depth + 1)
                }
                None => at,
            };
        }
        at
    }

    /// Which module names which, among the children of one parent: an arrow between two
    /// modules counts for those of their ancestors that are siblings.
    fn arrows(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        let mut arrows: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
        for (from, contents) in &self.modules {
            for path in &contents.named {
                let to = self.resolve(path, 0);
                let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
                if common < from.len() && common < to.len() {
                    let (from, to) = (from[..=common].to_vec(), to[..=common].to_vec());
                    arrows.entry(from).or_default().insert(to);
                }
            }
        }
        arrows
    }
}

/// The file of a child module and the folder of its own children.
fn places(folder: &Path, name: &str, path: Option<String>) -> (PathBuf, PathBuf) {
    if let Some(path) = path {
        let file = folder.join(path);
        let below = file.with_extension("");
        return (file, below);
    }
    let below = folder.join(name);
    let flat = folder.join(format!("{name}.rs"));
    let file = if flat.exists() {
        flat
    } else {
        below.join("mod.rs")
    };
    (file, below)
}

/// The names that a tree of imports brings in, and their paths.
fn flatten(tree: &UseTree, prefix: &mut Vec<String>, leaves: &mut Vec<(String, Vec<String>)>) {
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            flatten(&path.tree, prefix, leaves);
            prefix.pop();
        }
        UseTree::Name(name) if name.ident == "self" => {
            let last = prefix.last().cloned().unwrap_or_default();
            leaves.push((last, prefix.clone()));
        }
        UseTree::Name(name) => {
            let name = name.ident.to_string();
            leaves.push((name.clone(), [&prefix[..], &[name]].concat()));
        }
        UseTree::Rename(rename) => {
            let path = [&prefix[..], &[rename.ident.to_string()]].concat();
            leaves.push((rename.rename.to_string(), path));
        }
        UseTree::Glob(_) => leaves.push(("*".to_owned(), prefix.clone())),
        UseTree::Group(group) => {
            for tree in &group.items {
                flatten(tree, prefix, leaves);
            }
        }
    }
}

/// A path from the crate's root; none for one of another crate.
fn absolute(path: &[String], module: &Module) -> Option<Module> {
    let mut at = match path.first()?.as_str() {
        "crate" => return Some(path[1..].to_vec()),
        "self" => return Some([&module[..], &path[1..]].concat()),
        "super" => module.clone(),
        _ => return None,
    };
    let ups = path.iter().take_while(|name| *name == "super").count();
    at.truncate(at.len().checked_sub(ups)?);
    Some([&at[..], &path[ups..]].concat())
}

/// The absolute paths in code.
#[derive(Default)]
struct Paths(Vec<Vec<String>>);

impl<'a> Visit<'a> for Paths {
    fn visit_path(&mut self, path: &'a syn::Path) {
        let names = path.segments.iter().map(|part| part.ident.to_string());
        self.0.push(names.collect());
        syn::visit::visit_path(self, path);
    }
}

/// A way from a module back to itself, if there is one.
fn circle(arrows: &BTreeMap<Module, BTreeSet<Module>>, start: &Module) -> Option<Vec<Module>> {
    let mut seen = BTreeSet::new();
    let mut open = vec![vec![start.clone()]];
    while let Some(way) = open.pop() {
        let last = way.last()?;
        for next in arrows.get(last).into_iter().flatten() {
            let longer = [&way[..], std::slice::from_ref(next)].concat();
            if next == start {
                return Some(longer);
            }
            if seen.insert(next.clone()) {
                open.push(longer);
            }
        }
    }
    None
}

#[test]
fn modules_form_no_circle() {
    let mut circles = BTreeMap::new();
    for folder in WITHOUT_CIRCLES {
        let arrows = Crate::read(folder).arrows();
        for start in arrows.keys() {
            if let Some(way) = circle(&arrows, start) {
                let mut members = way.clone();
                members.sort();
                members.dedup();
                let way: Vec<_> = way.iter().map(|module| module.join("::")).collect();
                circles.insert((folder, members), way.join(" -> "));
            }
        }
    }
    let circles: Vec<_> = circles
        .iter()
        .map(|((folder, _), way)| format!("{folder}: {way}"))
        .collect();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn a_circle_is_found_also_behind_a_name_that_passes_through() {
    let dir = std::env::temp_dir().join(format!("kontena-tidy-{}", std::process::id()));
    let src = dir.join("src");
    std::fs::create_dir_all(&src).unwrap();
    let write = |name: &str, text: &str| std::fs::write(src.join(name), text).unwrap();
    write("lib.rs", "mod a;\nmod b;\nmod c;\npub use a::A;");
    write("a.rs", "use crate::b::B;\npub struct A(B);");
    write("b.rs", "use super::A;\npub struct B(Option<Box<A>>);");
    write("c.rs", "use crate::{a, b};\nfn c() { a::f(); b::f(); }");
    let mut found = Crate::default();
    found.file(&src.join("lib.rs"), &src, &Vec::new());
    let arrows = found.arrows();
    std::fs::remove_dir_all(&dir).unwrap();
    let module = |name: &str| vec![name.to_owned()];
    assert!(circle(&arrows, &module("a")).is_some(), "{arrows:?}");
    assert!(circle(&arrows, &module("b")).is_some(), "{arrows:?}");
    assert!(circle(&arrows, &module("c")).is_none(), "{arrows:?}");
    assert_eq!(arrows[&module("c")].len(), 2, "{arrows:?}");
}
