//! This crate's key type, which keeps boringtun's out of the interface.

use std::fmt;

use boringtun::x25519::{self, StaticSecret};
use kontena_schema::key::PublicKey;
use rand_core::OsRng;

/// The private half of a host's key. It is never shown.
#[derive(Clone)]
pub struct PrivateKey(pub(crate) StaticSecret);

impl PrivateKey {
    /// The key with these octets.
    pub fn from_octets(octets: [u8; 32]) -> Self {
        Self(StaticSecret::from(octets))
    }

    /// A new random key.
    pub fn generate() -> Self {
        Self(StaticSecret::random_from_rng(OsRng))
    }

    /// Its octets, for storage.
    pub fn to_octets(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.0).to_bytes())
    }
}

impl PartialEq for PrivateKey {
    fn eq(&self, other: &Self) -> bool {
        self.public() == other.public()
    }
}

impl Eq for PrivateKey {}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the private half of {}", self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_shows_its_public_half_only() {
        let key = PrivateKey::from_octets([7; 32]);
        let shown = format!("{key:?}");
        assert!(shown.contains(&key.public().to_string()), "{shown}");
        assert!(!shown.contains(&PublicKey(key.to_octets()).to_string()));
        assert_eq!(PrivateKey::from_octets(key.to_octets()), key);
    }
}
