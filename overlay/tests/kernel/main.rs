//! The overlay on a kernel that has WireGuard. The machine that runs the tests need not have one: [`boot`] starts a
//! virtual machine with Debian's, in which this very program runs the tests of [`guest`]; elsewhere they fail, and
//! nextest leaves them out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod boot;
mod guest;
mod machine;
mod results;
