//! The tree in order: documents that match it, files that stay small, nothing
//! that is only of one machine, nothing that nobody uses. Needs no stack.
#![allow(clippy::unwrap_used, missing_docs)]

mod crates;
mod dependencies;
mod documents;
mod modules;
mod settings;
mod sources;
mod tree;
mod words;
