//! Variables of a stack file: where their values come from, and putting them into
//! text.
//!
//! A value is looked for with the user (`-v`), among the predefined ones, in the
//! file's `variables`, and in the environment, in this order. The file can name
//! the environment's variable that a value is to come from (`from.env`).

use std::collections::BTreeMap;

use serde_yaml_ng::{Mapping, Value};

use super::fields::scalar;
use super::{Context, Faults};

/// The keys that describe a variable and are read.
const KNOWN: [&str; 6] = ["type", "value", "default", "from", "required", "label"];

/// All variables of one reading.
pub(super) struct Variables<'a> {
    known: BTreeMap<String, String>,
    env: &'a dyn Fn(&str) -> Option<String>,
}

impl<'a> Variables<'a> {
    pub(super) fn new(
        declared: Option<&Value>,
        context: &Context<'a>,
        faults: &mut Faults,
    ) -> Self {
        let mut known = BTreeMap::new();
        match declared {
            Some(Value::Mapping(declared)) => {
                for (name, description) in declared {
                    declare(name, description, context, &mut known, faults);
                }
            }
            None | Some(Value::Null) => {}
            Some(_) => faults.add("variables", "must be a mapping of names to descriptions"),
        }
        known.insert("GRID".to_owned(), context.grid.to_owned());
        known.insert("PLATFORM".to_owned(), context.grid.to_owned());
        known.extend(context.variables.clone());
        Self {
            known,
            env: context.env,
        }
    }

    /// With one more, unless the user gave it.
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.known
            .entry(name.to_owned())
            .or_insert_with(|| value.to_owned());
        self
    }

    fn get(&self, name: &str) -> Option<String> {
        self.known.get(name).cloned().or_else(|| (self.env)(name))
    }

    /// `text` with `$NAME` and `${NAME}` replaced, and `$$` as one `$`. A `$`
    /// before anything else stands for itself.
    pub(super) fn substitute(&self, text: &str) -> Result<String, String> {
        substitute(text, |name| self.get(name))
    }

    /// A value with every text in it substituted; keys stay as they are.
    pub(super) fn apply(&self, value: &Value, field: &str, faults: &mut Faults) -> Value {
        match value {
            Value::String(text) => match self.substitute(text) {
                Ok(text) => Value::String(text),
                Err(reason) => {
                    faults.add(field, reason);
                    value.clone()
                }
            },
            Value::Sequence(items) => items
                .iter()
                .map(|item| self.apply(item, field, faults))
                .collect(),
            Value::Mapping(entries) => {
                let entries = entries.iter();
                let entries = entries.map(|(k, v)| (k.clone(), self.apply(v, field, faults)));
                Value::Mapping(entries.collect())
            }
            Value::Tagged(tagged) => self.apply(&tagged.value, field, faults),
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }
}

fn declare(
    name: &Value,
    description: &Value,
    context: &Context<'_>,
    known: &mut BTreeMap<String, String>,
    faults: &mut Faults,
) {
    let Some(name) = name.as_str().filter(|name| is_name(name)) else {
        return faults.add("variables", "a name is made of letters, digits and '_'");
    };
    let field = format!("variables.{name}");
    let Value::Mapping(description) = description else {
        return faults.add(field, "must be a mapping with type and default");
    };
    for key in description.keys() {
        let key = key.as_str().unwrap_or("(no text)");
        if !KNOWN.contains(&key) {
            faults.add(format!("{field}.{key}"), "not supported yet");
        }
    }
    let from_env = source(description, &field, faults).and_then(|name| (context.env)(&name));
    let written = ["value", "default"]
        .iter()
        .find_map(|key| description.get(*key));
    let value = from_env.or_else(|| match written {
        Some(value) => {
            let text = scalar(value);
            if text.is_none() {
                faults.add(field, "its value must be text, a number or a truth value");
            }
            text
        }
        // A variable that need not be set is empty, one that must is missed where
        // it is used.
        None => (description.get("required") == Some(&Value::Bool(false))).then(String::new),
    });
    known.extend(value.map(|value| (name.to_owned(), value)));
}

/// The variable of the environment that `from` names.
fn source(description: &Mapping, field: &str, faults: &mut Faults) -> Option<String> {
    let from = description.get("from").filter(|from| !from.is_null())?;
    let Value::Mapping(sources) = from else {
        faults.add(
            format!("{field}.from"),
            "must be a mapping such as `env: NAME`",
        );
        return None;
    };
    for key in sources.keys().filter(|key| key.as_str() != Some("env")) {
        let key = key.as_str().unwrap_or("(no text)");
        faults.add(format!("{field}.from.{key}"), "not supported yet");
    }
    sources.get("env").and_then(scalar)
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(is_name_start) && bytes.all(is_name_byte)
}

fn is_name_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_'
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn substitute(text: &str, get: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        done.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            done.push('$');
            rest = tail;
            continue;
        }
        let (name, tail) = match after.strip_prefix('{') {
            Some(braced) => {
                let Some((name, tail)) = braced.split_once('}') else {
                    return Err(format!("\"${{\" without \"}}\" in {text:?}"));
                };
                if !is_name(name) {
                    return Err(format!("${{{name}}} names no variable"));
                }
                (name, tail)
            }
            None if after.bytes().next().is_some_and(is_name_start) => {
                let end = after
                    .bytes()
                    .position(|b| !is_name_byte(b))
                    .unwrap_or(after.len());
                after.split_at(end)
            }
            None => {
                done.push('$');
                rest = after;
                continue;
            }
        };
        done += &get(name).ok_or_else(|| format!("variable {name} has no value"))?;
        rest = tail;
    }
    done.push_str(rest);
    Ok(done)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(name: &str) -> Option<String> {
        match name {
            "A" => Some("1".to_owned()),
            "LONG_NAME" => Some("x $A".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn names_are_replaced_and_dollars_escaped() {
        for (text, want) in [
            ("", ""),
            ("plain", "plain"),
            ("$A", "1"),
            ("${A}b $A-$A", "1b 1-1"),
            ("$LONG_NAME", "x $A"),
            ("$$A $${A}", "$A ${A}"),
            ("5$ $1 $( $", "5$ $1 $( $"),
        ] {
            assert_eq!(substitute(text, values).as_deref(), Ok(want), "{text}");
        }
        for (text, reason) in [
            ("$B", "B has no value"),
            ("${A", "without"),
            ("${A:-x}", "names no"),
        ] {
            let got = substitute(text, values).unwrap_err();
            assert!(got.contains(reason), "{text}: {got}");
        }
    }

    proptest! {
        #[test]
        fn escaped_text_comes_back(text in "\\PC*") {
            let escaped = text.replace('$', "$$");
            prop_assert_eq!(substitute(&escaped, values), Ok(text));
        }

        #[test]
        fn no_text_upsets_it(text in "[$A{}B _a1\\PC]*") {
            let _ = substitute(&text, values);
        }
    }
}
