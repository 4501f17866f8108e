//! The agents' side of a replica: their WebSockets and the feed.
//!
//! A [`Hub`] knows which grids have sessions here and up to which revision each
//! was heard to be. A session waits for its grid to move on and asks the
//! [`Feed`] what changed; sessions at the same position share one read and one
//! serialisation. Nothing is queued for a slow agent: when it has taken one
//! frame, the next one holds all that happened meanwhile.

mod feed;
mod hub;
mod session;

pub use feed::{ChangesFrame, Feed, FeedCut};
pub use hub::{GridWatch, Hub, Live, Wake};
pub use session::{Connection, serve};
