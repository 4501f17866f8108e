//! Reading one YAML value as what a key wants. Each reader answers the value or
//! the reason why it is none.

use serde_yaml_ng::Value;

/// A scalar as text. Null and compound values are none.
pub(super) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => None,
    }
}

/// A scalar as text.
pub(super) fn text(value: &Value) -> Result<String, String> {
    scalar(value).ok_or_else(|| "must be text".to_owned())
}

/// A whole number; as text too, for it may come from a variable.
pub(super) fn number(value: &Value) -> Result<u32, String> {
    let text = scalar(value).unwrap_or_default();
    text.parse()
        .map_err(|_| format!("must be a whole number, not {text:?}"))
}

/// A truth value; as text too.
pub(super) fn truth(value: &Value) -> Result<bool, String> {
    match scalar(value).as_deref() {
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

/// A list of texts.
pub(super) fn list(value: &Value) -> Result<Vec<String>, String> {
    let Value::Sequence(items) = value else {
        return Err("must be a list".to_owned());
    };
    let texts = items.iter().map(scalar).collect::<Option<_>>();
    texts.ok_or_else(|| "must be a list of texts".to_owned())
}

/// A list of texts, or one alone.
pub(super) fn one_or_list(value: &Value) -> Result<Vec<String>, String> {
    match scalar(value) {
        Some(text) => Ok(vec![text]),
        None => list(value),
    }
}

/// Reads every item of a list; the reasons of all that fail.
pub(super) fn each<T>(
    value: &Value,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let mut good = Vec::new();
    let mut bad = Vec::new();
    for item in list(value)? {
        match parse(&item) {
            Ok(item) => good.push(item),
            Err(reason) => bad.push(reason),
        }
    }
    if bad.is_empty() {
        Ok(good)
    } else {
        Err(bad.join("; "))
    }
}
