//! What must hold on a kernel that has WireGuard, for hosts that use it and for hosts with the sleeve beside them.
//!
//! The kernel is emulated, and the machine below it may be busy: whatever is waited for is a state, and how long it took
//! is of no interest.

mod docker;
mod hand_made;
mod host;
mod keys;
mod life;
mod nftables;
mod paths;
mod process;
mod stream;
mod wire;
