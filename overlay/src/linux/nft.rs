//! One table of the packet filter, as `nft` reads and writes it in JSON.
//!
//! A table is written whole in one transaction, and afterwards only the elements
//! of its sets are changed. So a listing is compared in two parts: the frame,
//! which must be exactly what would be written, and the elements, which hold the
//! variable part.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::error::Cause;
use crate::model::state::TableState;
use crate::sys::program::{refused, run, run_ok};

/// The name of our tables, one in each family.
pub(crate) const KONTENA: &str = "kontena";
/// The table of the containers' port filters, which are written one by one.
pub(crate) const PORTS: &str = "kontena_ports";

/// What varies between listings of the same table, or (`dev`) is shown only by
/// some versions of `nft`.
const CHANGING: [&str; 4] = ["handle", "packets", "bytes", "dev"];

/// The family of a table, `NFPROTO_*`.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum Family {
    Inet = 1,
    Netdev = 5,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Netdev => "netdev",
        }
    }
}

/// Which tables there are; none if the kernel did not tell. A program to list a table that is
/// not there costs as much as any.
pub(crate) struct Present(pub(crate) Option<BTreeSet<(u8, String)>>);

impl Present {
    fn may_have(&self, table: Table) -> bool {
        let has = |all: &BTreeSet<_>| all.contains(&(table.family as u8, table.name.to_owned()));
        self.0.as_ref().is_none_or(has)
    }
}

/// A table of ours.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    pub(crate) family: Family,
    pub(crate) name: &'static str,
}

impl Table {
    /// Reads the table and compares it with `frame`; `elements` parses what the sets
    /// hold, and returns none if it cannot.
    pub(crate) async fn observe<T>(
        self,
        present: &Present,
        frame: &[Value],
        elements: impl FnOnce(&Elements) -> Option<T>,
    ) -> Result<TableState<T>, Cause> {
        let listing = self.list(present).await?;
        let state = |listing| self.state(&listing, frame, elements);
        Ok(listing.map_or(TableState::Missing, state))
    }

    /// The listing of the table; none if there is no table.
    pub(crate) async fn list(self, present: &Present) -> Result<Option<Value>, Cause> {
        if !present.may_have(self) {
            return Ok(None);
        }
        let which = ["-j", "list", "table", self.family.name(), self.name];
        let answer = run("nft", &which, &[]).await?;
        if answer.ok {
            return Ok(Some(
                serde_json::from_slice(&answer.stdout).unwrap_or_default(),
            ));
        }
        if answer.stderr.contains("No such file or directory") {
            return Ok(None);
        }
        Err(refused("nft", &answer))
    }

    /// The same, from a listing.
    pub(crate) fn state<T>(
        self,
        listing: &Value,
        frame: &[Value],
        elements: impl FnOnce(&Elements) -> Option<T>,
    ) -> TableState<T> {
        parse(listing, &self.whole(frame), elements)
    }

    /// Writes the whole table, replacing whatever had its name.
    pub(crate) async fn install(self, frame: &[Value], elements: Vec<Value>) -> Result<(), Cause> {
        // A table must exist to be deleted.
        let replace = [
            json!({"add": self.itself()}),
            json!({"delete": self.itself()}),
        ];
        let contents = self.whole(frame).into_iter().chain(elements);
        let add = contents.map(|object| json!({"add": object}));
        self.commit(replace.into_iter().chain(add).collect()).await
    }

    /// Deletes elements of sets and adds others, in one go.
    pub(crate) async fn change(self, old: Vec<Value>, new: Vec<Value>) -> Result<(), Cause> {
        let delete = old.into_iter().map(|object| json!({"delete": object}));
        let add = new.into_iter().map(|object| json!({"add": object}));
        self.commit(delete.chain(add).collect()).await
    }

    /// Removes the table.
    pub(crate) async fn remove(self) -> Result<(), Cause> {
        self.commit(vec![json!({"delete": self.itself()})]).await
    }

    /// Runs commands in one transaction.
    pub(crate) async fn commit(self, commands: Vec<Value>) -> Result<(), Cause> {
        let input = json!({"nftables": commands}).to_string();
        let done = run_ok("nft", &["-j", "-f", "-"], input.as_bytes()).await;
        done.map(drop)
    }

    /// An object in the table, as `nft` takes it and shows it.
    pub(crate) fn object(self, kind: &str, mut body: Value) -> Value {
        body["family"] = json!(self.family.name());
        body["table"] = json!(self.name);
        json!({kind: body})
    }

    /// Elements of a set; nothing for none, which `nft` would refuse.
    pub(crate) fn elements(
        self,
        set: &str,
        elements: impl IntoIterator<Item = Value>,
    ) -> Option<Value> {
        let elements: Vec<Value> = elements.into_iter().collect();
        let some = !elements.is_empty();
        some.then(|| self.object("element", json!({"name": set, "elem": elements})))
    }

    pub(crate) fn itself(self) -> Value {
        json!({"table": {"family": self.family.name(), "name": self.name}})
    }

    fn whole(self, frame: &[Value]) -> Vec<Value> {
        [&[self.itself()], frame].concat()
    }
}

/// The objects of a listing, with their kinds.
pub(crate) fn objects(listing: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let objects = listing["nftables"].as_array().into_iter().flatten();
    objects.filter_map(|object| {
        let (kind, body) = object.as_object()?.iter().next()?;
        Some((kind.as_str(), body))
    })
}

/// The left side equals the right, in a rule.
pub(crate) fn equals(left: &Value, right: &Value) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

/// The left side is one of the right, or has one of its flags, in a rule.
pub(crate) fn is_in(left: &Value, right: &Value) -> Value {
    json!({"match": {"op": "in", "left": left, "right": right}})
}

/// The left side differs from the right, in a rule.
pub(crate) fn differs(left: &Value, right: &Value) -> Value {
    json!({"match": {"op": "!=", "left": left, "right": right}})
}

/// A property of a packet that is in none of its headers, in a rule.
pub(crate) fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

/// A field of a header, in a rule.
pub(crate) fn field(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

/// Counts a packet and drops it, in a rule.
pub(crate) fn count_and_drop(counter: &str) -> [Value; 2] {
    [json!({"counter": counter}), json!({"drop": null})]
}

/// What the sets of a table hold, by name.
#[derive(Debug, Default)]
pub(crate) struct Elements(BTreeMap<String, Vec<Value>>);

impl Elements {
    /// What a set holds, each element read by `read`; none if one cannot be.
    pub(crate) fn of<T, C: FromIterator<T>>(
        &self,
        set: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Option<C> {
        let elements = self.0.get(set).map_or(&[][..], Vec::as_slice);
        elements.iter().map(read).collect()
    }
}

/// A table without what its sets hold.
#[derive(Debug, Default, PartialEq, Eq)]
struct Frame {
    others: BTreeSet<String>,
    /// The order matters only among rules of one chain.
    rules: BTreeMap<String, Vec<String>>,
}

/// Compares the output of `nft -j list table` with the wanted table.
fn parse<T>(
    listing: &Value,
    wanted: &[Value],
    elements: impl FnOnce(&Elements) -> Option<T>,
) -> TableState<T> {
    let Some(objects) = listing["nftables"].as_array() else {
        return TableState::Broken;
    };
    let (frame, found) = take_apart(objects);
    let sound = frame == take_apart(wanted).0;
    match elements(&found).filter(|_| sound) {
        Some(elements) => TableState::Sound(elements),
        None => TableState::Broken,
    }
}

fn take_apart(objects: &[Value]) -> (Frame, Elements) {
    let mut frame = Frame::default();
    let mut elements = Elements::default();
    for object in objects {
        let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next()) else {
            continue;
        };
        let mut fields = match body.as_object() {
            Some(fields) if kind != "metainfo" => fields.clone(),
            _ => continue,
        };
        let name = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
        if let Some(Value::Array(held)) = fields.remove("elem") {
            elements.0.entry(name("name")).or_default().extend(held);
        }
        for changing in CHANGING {
            fields.remove(changing);
        }
        let text = json!({kind: fields}).to_string();
        if kind == "rule" {
            frame.rules.entry(name("chain")).or_default().push(text);
        } else {
            frame.others.insert(text);
        }
    }
    (frame, elements)
}

/// Listings as `nft` would write them, for the tests of the tables.
#[cfg(test)]
pub(crate) mod listing {
    use super::*;

    /// What is listed after a table was installed.
    pub(crate) fn of(table: Table, frame: &[Value], elements: Vec<Value>) -> Vec<Value> {
        let mut objects = vec![json!({"metainfo": {"version": "1.0.6"}})];
        objects.extend(table.whole(frame));
        for (handle, object) in objects.iter_mut().enumerate().skip(1) {
            let body = object.as_object_mut().unwrap().values_mut().next().unwrap();
            body["handle"] = json!(handle);
        }
        for added in elements {
            let of_set = |object: &&mut Value| object["set"]["name"] == added["element"]["name"];
            let set = objects.iter_mut().find(of_set).unwrap();
            set["set"]["elem"] = added["element"]["elem"].clone();
        }
        objects
    }

    /// Something was counted.
    pub(crate) fn count(objects: &mut [Value]) {
        for object in objects {
            if let Some(counter) = object.get_mut("counter") {
                counter["packets"] = json!(7);
                counter["bytes"] = json!(700);
            }
        }
    }

    /// The state that a listing shows.
    pub(crate) fn state<T>(
        table: Table,
        objects: &[Value],
        frame: &[Value],
        elements: impl FnOnce(&Elements) -> Option<T>,
    ) -> TableState<T> {
        table.state(&json!({"nftables": objects}), frame, elements)
    }

    #[test]
    fn what_is_no_listing_is_broken() {
        for listing in [json!(null), json!({}), json!([]), json!({"nftables": 7})] {
            let state = parse(&listing, &[], |_| Some(()));
            assert_eq!(state, TableState::Broken, "{listing}");
        }
    }
}
