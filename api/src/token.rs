//! Tokens: JWTs over a row's id and generation, and the administrator's own.
//!
//! A token says nothing but which row of `tokens` it stands for. What it may do
//! is read from there each time, so raising the generation revokes it at once.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use kontena_schema::ids::{GridId, NodeId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::config::Secret;

/// What a signed token holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The row of `tokens`.
    pub sub: Uuid,
    /// Its generation when the token was signed.
    pub generation: i64,
}

/// The kinds of signed tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// Lets hosts join a grid.
    Join,
    /// Belongs to one node.
    Node,
}

/// A row of `tokens`.
#[derive(Clone, Debug, Deserialize)]
pub struct TokenRow {
    /// Its id.
    pub id: Uuid,
    /// What it allows.
    pub kind: TokenKind,
    /// The grid.
    pub grid_id: GridId,
    /// The node, for a node's token.
    pub node_id: Option<NodeId>,
    /// Rises when earlier tokens are revoked.
    pub generation: i64,
    /// Whether it was used.
    pub used: bool,
}

/// Signs and checks tokens; the same on every replica.
pub struct Signer {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
    admin: [u8; 32],
}

impl Signer {
    /// A signer with the replicas' secret and the administrator's token.
    pub fn new(secret: &Secret, admin_token: &Secret) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        // They live until they are revoked.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        let key = secret.expose().as_bytes();
        Self {
            encoding: EncodingKey::from_secret(key),
            decoding: DecodingKey::from_secret(key),
            validation,
            admin: digest(admin_token.expose()),
        }
    }

    /// The token of a row.
    pub fn sign(&self, row: &TokenRow) -> String {
        let claims = Claims {
            sub: row.id,
            generation: row.generation,
        };
        encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)
            .expect("two plain claims and an HMAC key always encode")
    }

    /// The claims of a token with a right signature.
    pub fn verify(&self, token: &str) -> Option<Claims> {
        Some(
            decode::<Claims>(token, &self.decoding, &self.validation)
                .ok()?
                .claims,
        )
    }

    /// Whether a token is the administrator's; takes the same time for each.
    pub fn is_admin(&self, token: &str) -> bool {
        digest(token).ct_eq(&self.admin).into()
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(secret: &str) -> Signer {
        Signer::new(
            &secret.to_owned().into(),
            &"admin-token-of-tests".to_owned().into(),
        )
    }

    fn row() -> TokenRow {
        TokenRow {
            id: Uuid::new_v4(),
            kind: TokenKind::Join,
            grid_id: GridId(1),
            node_id: None,
            generation: 3,
            used: false,
        }
    }

    #[test]
    fn a_token_is_read_back_by_the_same_secret_only() {
        let row = row();
        let token = signer("a-secret").sign(&row);
        let claims = signer("a-secret").verify(&token).unwrap();
        assert_eq!(
            claims,
            Claims {
                sub: row.id,
                generation: 3
            }
        );
        assert_eq!(signer("another").verify(&token), None);
        assert_eq!(signer("a-secret").verify(&token[..token.len() - 1]), None);
        assert_eq!(signer("a-secret").verify(""), None);
    }

    #[test]
    fn an_unsigned_token_is_refused() {
        // {"alg":"none"} . {"sub":"..","generation":1} . no signature
        let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiIwMDAwMDAwMC0wMDAwLTAwMDAtMDAwMC0wMDAwMDAwMDAwMDAiLCJnZW5lcmF0aW9uIjoxfQ.";
        assert_eq!(signer("a-secret").verify(none), None);
    }

    #[test]
    fn the_administrators_token_is_known() {
        assert!(signer("s").is_admin("admin-token-of-tests"));
        assert!(!signer("s").is_admin("admin-token-of-test"));
        assert!(!signer("s").is_admin(""));
    }
}
