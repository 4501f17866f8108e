//! The feed: what changed in a grid since a position.
//!
//! One statement answers the part for every agent and the parts for single nodes
//! from one snapshot. A cut is kept while others may ask for the same position,
//! so that the sessions of a grid, which move together, cost one read.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use kontena_schema::ids::{GridId, NodeId, Revision};
use kontena_schema::query;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::OnceCell;

use crate::db::{Db, DbError};

/// Cuts that are kept: a few positions for each of the grids that move.
const CUTS_KEPT: usize = 64;

/// What changed in a grid between two revisions.
pub struct FeedCut {
    timeline: String,
    from: Revision,
    to: Revision,
    shared: Box<RawValue>,
    own: HashMap<NodeId, Box<RawValue>>,
    /// The part of a node for which nothing changed.
    nothing: Box<RawValue>,
}

/// A cut as one node's frame, `{"changes": {..}}`.
#[derive(Serialize)]
pub struct ChangesFrame<'a> {
    changes: Body<'a>,
}

#[derive(Serialize)]
struct Body<'a> {
    timeline: &'a str,
    from: Revision,
    to: Revision,
    shared: &'a RawValue,
    own: &'a RawValue,
}

impl FeedCut {
    /// The revision from which this goes on.
    pub fn from(&self) -> Revision {
        self.from
    }

    /// The revision that an agent is at with this.
    pub fn to(&self) -> Revision {
        self.to
    }

    /// The history that the revisions count in.
    pub fn timeline(&self) -> &str {
        &self.timeline
    }

    /// The text frame for a node.
    pub fn frame(&self, node: NodeId) -> String {
        let own = self.own.get(&node).map(AsRef::as_ref);
        let body = Body {
            timeline: &self.timeline,
            from: self.from,
            to: self.to,
            shared: &self.shared,
            own: own.unwrap_or(&self.nothing),
        };
        serde_json::to_string(&ChangesFrame { changes: body })
            .expect("numbers, strings and JSON from Postgres serialise")
    }
}

/// A position in a grid's feed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Position {
    grid: GridId,
    timeline: String,
    from: Revision,
    /// What the grid was heard to be at: a cut from an earlier time is of no use
    /// to a session that was woken for more.
    heard: Revision,
}

type Cut = Arc<OnceCell<Arc<FeedCut>>>;

/// Reads cuts and shares them.
#[derive(Default)]
pub struct Feed {
    cuts: Mutex<VecDeque<(Position, Cut)>>,
}

impl Feed {
    /// What changed in a grid after `from` of `timeline`, at least up to `heard`.
    /// None if the grid is no more.
    pub async fn cut(
        &self,
        db: &Db,
        grid: GridId,
        timeline: &str,
        from: Revision,
        heard: Revision,
    ) -> Result<Option<Arc<FeedCut>>, DbError> {
        let position = Position {
            grid,
            timeline: timeline.to_owned(),
            from,
            heard,
        };
        let cell = self.cell(position);
        match cell
            .get_or_try_init(|| read(db, grid, timeline, from))
            .await
        {
            Ok(cut) => Ok(Some(Arc::clone(cut))),
            Err(Missing::Grid) => Ok(None),
            Err(Missing::Db(error)) => Err(error),
        }
    }

    fn cell(&self, position: Position) -> Cut {
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, cut)) = cuts.iter().find(|(known, cut)| {
            // One that holds less than was heard would only wake its session again.
            *known == position && cut.get().is_none_or(|cut| cut.to >= position.heard)
        }) {
            return Arc::clone(cut);
        }
        if cuts.len() == CUTS_KEPT {
            cuts.pop_front();
        }
        let cut = Cut::default();
        cuts.push_back((position, Arc::clone(&cut)));
        cut
    }
}

enum Missing {
    Grid,
    Db(DbError),
}

impl From<DbError> for Missing {
    fn from(error: DbError) -> Self {
        Self::Db(error)
    }
}

async fn read(
    db: &Db,
    grid: GridId,
    timeline: &str,
    from: Revision,
) -> Result<Arc<FeedCut>, Missing> {
    let rows = db
        .rows(&query::FEED_CHANGES, &[&grid, &from, &timeline])
        .await?;
    let row = rows.first().ok_or(Missing::Grid)?;
    let text = |column: &str| row.get::<_, String>(column);
    let parse = "Postgres wrote it as JSON";
    Ok(Arc::new(FeedCut {
        timeline: text("timeline"),
        from: row.get("since"),
        to: row.get("revision"),
        shared: RawValue::from_string(text("shared")).expect(parse),
        own: serde_json::from_str::<HashMap<NodeKey, _>>(&text("own"))
            .expect(parse)
            .into_iter()
            .map(|(key, part)| (key.0, part))
            .collect(),
        nothing: RawValue::from_string("{}".to_owned()).expect("an empty object is JSON"),
    }))
}

/// A node's id as the key of a JSON object.
#[derive(PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
struct NodeKey(NodeId);

impl TryFrom<String> for NodeKey {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Ok(Self(NodeId(text.parse()?)))
    }
}
