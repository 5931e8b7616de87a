//! The one line with which a machine enrols: `kage1.BASE64URL(JSON)`.

use crate::roles::{Fingerprint, Identity, Role};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::rand::SecureRandom as _;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Begins a token; the number is the format's.
const PREFIX: &str = "kage1.";
/// Guessing it is hopeless, so that a token's life is bounded by its use only.
const SECRET_BYTES: usize = 32;
/// A token is some 300 bytes long.
const MAX_LENGTH: usize = 4096;

/// Lets one machine enrol, once. Whoever has it can: it is shown to nobody else, and `Debug` hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Where to enrol, HOST:PORT.
    pub coordinator: String,
    /// The authority that the coordinator's certificate must be of.
    pub authority: Fingerprint,
    /// Who the machine will be.
    pub identity: Identity,
    /// What the coordinator recognises it by.
    pub secret: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("coordinator", &self.coordinator)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// No token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Another format, or damaged.
    #[error("this is no enrolment token: {0}; make one with `kagectl pki token --name NAME` and copy the whole line")]
    Malformed(&'static str),
    /// The system gives no random numbers.
    #[error("this machine gives no random numbers")]
    Random,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    coordinator: String,
    authority: String,
    name: String,
    role: String,
    secret: String,
}

impl Token {
    /// With a new secret.
    ///
    /// # Errors
    /// [`TokenError::Random`].
    pub fn new(coordinator: &str, authority: Fingerprint, identity: Identity) -> Result<Self, TokenError> {
        let mut secret = [0; SECRET_BYTES];
        ring::rand::SystemRandom::new().fill(&mut secret).map_err(|_| TokenError::Random)?;
        Ok(Self { coordinator: coordinator.to_owned(), authority, identity, secret: URL_SAFE_NO_PAD.encode(secret) })
    }

    /// What the coordinator keeps of a secret, so that its files let nobody enrol: SHA-256 in hexadecimal.
    #[must_use]
    pub fn secret_digest(secret: &str) -> String {
        Fingerprint::of(secret.as_bytes()).to_string()
    }

    /// The line itself.
    #[must_use]
    pub fn encode(&self) -> String {
        let wire = Wire {
            coordinator: self.coordinator.clone(),
            authority: self.authority.to_string(),
            name: self.identity.name.clone(),
            role: self.identity.role.to_string(),
            secret: self.secret.clone(),
        };
        // Five strings always serialise.
        let json = serde_json::to_vec(&wire).unwrap_or_default();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

impl FromStr for Token {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_LENGTH {
            return Err(TokenError::Malformed("it is too long"));
        }
        let body = text.strip_prefix(PREFIX).ok_or(TokenError::Malformed("it does not begin with kage1."))?;
        let json =
            URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Malformed("a part of it is missing or changed"))?;
        let wire: Wire =
            serde_json::from_slice(&json).map_err(|_| TokenError::Malformed("a part of it is missing or changed"))?;
        let role: Role = wire.role.parse().map_err(|_| TokenError::Malformed("its role is unknown"))?;
        Ok(Self {
            coordinator: wire.coordinator,
            authority: wire.authority.parse().map_err(|_| TokenError::Malformed("its fingerprint is damaged"))?,
            identity: Identity::new(role, &wire.name).map_err(|_| TokenError::Malformed("its name is no name"))?,
            secret: wire.secret,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_hide_their_secret() {
        let identity = Identity::new(Role::Agent, "rs1").expect("name");
        let token = Token::new("10.0.0.1:7700", Fingerprint::of(b"ca"), identity.clone()).expect("random");
        let line = token.encode();
        assert!(line.starts_with("kage1.") && !line.contains(char::is_whitespace));
        assert_eq!(format!(" {line}\n").parse::<Token>().expect("token"), token);
        assert!(!format!("{token:?}").contains(&token.secret));
        let other = Token::new("10.0.0.1:7700", Fingerprint::of(b"ca"), identity).expect("random");
        assert_ne!(token.secret, other.secret);
        for bad in ["", "kage1.", "kage2.e30", "kage1.e30", &line[..line.len() - 4]] {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
    }
}
