//! The reconcile loop on a real Docker engine and a real overlay, the latter in a
//! network namespace of the test's own. The loop owns every service container of its
//! engine, so these tests take turns.
//!
//! They need root, the engine at `/var/run/docker.sock`, the image `kontena/base`
//! and a built `weavewait`.
#![allow(clippy::unwrap_used)]

mod data;
mod host;
mod life;
mod stuck;
