//! The public halves of the nodes' WireGuard keys.
//!
//! A node makes its keys itself and tells the Master only these. While it
//! changes its key it has two: the one that it uses, and the one that it will
//! use as soon as all of its peers know it.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// A Curve25519 public key, written in base64 as `wg` does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(pub [u8; 32]);

/// The public keys of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKeys {
    /// What its peers seal for.
    pub current: PublicKey,
    /// What it will use next.
    #[serde(default)]
    pub next: Option<PublicKey>,
}

/// Text that is no public key.
#[derive(Debug, thiserror::Error)]
#[error("not a public key (32 bytes in base64): {0:?}")]
pub struct KeyError(String);

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let octets = STANDARD.decode(text).ok();
        let key = octets.and_then(|octets| octets.try_into().ok());
        // With zeroes, every shared secret would be zeroes too.
        key.filter(|key| *key != [0; 32])
            .map(Self)
            .ok_or_else(|| KeyError(text.to_owned()))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_written_and_read_as_wg_does() {
        // Of `wg genkey | wg pubkey`.
        let text = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
        let key: PublicKey = text.parse().unwrap();
        assert_eq!(key.to_string(), text);
        assert_eq!(serde_json::to_string(&key).unwrap(), format!("{text:?}"));
        assert_eq!(key.0[0], 0xc5);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let zeroes = STANDARD.encode([0; 32]);
        for text in ["", "xTIB", "????", &zeroes, &STANDARD.encode([7; 33])] {
            assert!(text.parse::<PublicKey>().is_err(), "{text:?}");
        }
    }
}
