//! What a node does to make the Master's decisions true on its host.

pub mod overlay;
