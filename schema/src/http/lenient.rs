//! Integers as numbers or as strings of digits; `null` and `""` are absent.

use std::fmt::Display;
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

#[derive(Deserialize)]
#[serde(untagged)]
enum Loose {
    Number(serde_json::Number),
    Text(String),
}

/// Reads an optional integer.
pub fn option<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    let text = match Option::<Loose>::deserialize(deserializer)? {
        None => return Ok(None),
        Some(Loose::Number(number)) => number.to_string(),
        Some(Loose::Text(text)) if text.is_empty() => return Ok(None),
        Some(Loose::Text(text)) => text,
    };
    let parsed = text
        .parse()
        .map_err(|err| D::Error::custom(format!("{text:?}: {err}")))?;
    Ok(Some(parsed))
}

/// Reads an integer that must be there.
pub fn required<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    option(deserializer)?.ok_or_else(|| D::Error::custom("a number is required"))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    #[derive(Deserialize, PartialEq, Debug)]
    struct Body {
        #[serde(default, deserialize_with = "super::option")]
        size: Option<u16>,
        #[serde(deserialize_with = "super::required")]
        port: u16,
    }

    #[test]
    fn numbers_strings_null_and_empty() {
        for (json, size) in [
            (r#"{"port":80,"size":3}"#, Some(3)),
            (r#"{"port":"80","size":"3"}"#, Some(3)),
            (r#"{"port":"80","size":""}"#, None),
            (r#"{"port":"80","size":null}"#, None),
            (r#"{"port":"80"}"#, None),
        ] {
            assert_eq!(
                serde_json::from_str::<Body>(json).unwrap(),
                Body { size, port: 80 }
            );
        }
        for bad in [
            r#"{"port":"x"}"#,
            r#"{"port":70000}"#,
            r#"{"port":null}"#,
            r#"{"port":1.5}"#,
        ] {
            assert!(serde_json::from_str::<Body>(bad).is_err(), "{bad}");
        }
    }
}
