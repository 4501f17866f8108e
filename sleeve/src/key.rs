//! Keys, as the rest of the project executor them over.

use std::fmt;

use boringtun::x25519::{self, StaticSecret};
use kontena_schema::key::PublicKey;
use rand_core::OsRng;

/// The secret half of a host's key. It is shown to nobody.
#[derive(Clone)]
pub struct PrivateKey(pub(crate) StaticSecret);

impl PrivateKey {
    /// The key of these octets.
    pub fn from_octets(octets: [u8; 32]) -> Self {
        Self(StaticSecret::from(octets))
    }

    /// A new key, of the system's random numbers.
    pub fn generate() -> Self {
        Self(StaticSecret::random_from_rng(OsRng))
    }

    /// Its octets, to be written down.
    pub fn to_octets(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The half that peers know.
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
        write!(f, "the secret half of {}", self.public())
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
