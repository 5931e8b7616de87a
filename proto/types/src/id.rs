//! Names and numbers that identify things.

use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, str::FromStr};

/// A name that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not 1 to 63 of `a-z A-Z 0-9 . _ -`, or it begins with a dot or a dash.
    #[error("{0:?} is no name: use 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit")]
    BadName(String),
    /// Not an IPv4 or IPv6 address that a service can have.
    #[error("{0:?} is no virtual IP: give one unicast IPv4 or IPv6 address without prefix length")]
    BadVip(String),
}

fn check_name(name: &str) -> Result<(), IdError> {
    let ok = (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if ok { Ok(()) } else { Err(IdError::BadName(name.to_owned())) }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checked: 1 to 63 letters, digits, `.`, `_`, `-`.
            ///
            /// # Errors
            /// [`IdError::BadName`] for anything else.
            pub fn new(name: impl Into<String>) -> Result<Self, IdError> {
                let name = name.into();
                check_name(&name)?;
                Ok(Self(name))
            }

            /// The name itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(name: String) -> Result<Self, IdError> {
                Self::new(name)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(name: &str) -> Result<Self, IdError> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// An agent, by the name in its certificate; one per machine.
    AgentId
);
name!(
    /// A supervised server (thesis: target server).
    TargetName
);
name!(
    /// A libvirt domain.
    DomainName
);
name!(
    /// A service of a server, as its agent's configuration names it.
    ServiceName
);
name!(
    /// The redundant virtual servers that offer one service (thesis: service group).
    GroupName
);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", &stringify!($name)[..1].to_ascii_lowercase(), self.0)
            }
        }
    };
}

number!(
    /// Of one VIP: given to exactly one owner by SIF, one higher at every change of owner. 0: never given.
    Epoch
);
number!(
    /// A coordinator's turn of authority, leased from SIF. 0: none yet.
    Term
);
number!(
    /// Of one asker: ties an answer to the request it answers. Rises by one with each request.
    Nonce
);
number!(
    /// Of SIF's ledger: rises by one with each durable change.
    Revision
);

/// A virtual IP address: what clients use, and what moves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Vip(IpAddr);

impl Vip {
    /// # Errors
    /// [`IdError::BadVip`] for a loopback, multicast, broadcast or unspecified address.
    pub fn new(address: IpAddr) -> Result<Self, IdError> {
        let bad = address.is_loopback()
            || address.is_multicast()
            || address.is_unspecified()
            || matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
        if bad { Err(IdError::BadVip(address.to_string())) } else { Ok(Self(address)) }
    }

    /// The address.
    #[must_use]
    pub fn address(self) -> IpAddr {
        self.0
    }
}

impl FromStr for Vip {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let address: IpAddr = text.parse().map_err(|_| IdError::BadVip(text.to_owned()))?;
        Self::new(address)
    }
}

impl TryFrom<String> for Vip {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Vip> for String {
    fn from(vip: Vip) -> String {
        vip.0.to_string()
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(AgentId::new("rs1.example").is_ok());
        for bad in ["", "-x", ".x", "a b", "ä", &"x".repeat(64)] {
            assert!(AgentId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn vips_are_unicast_addresses() {
        assert!("10.0.0.1".parse::<Vip>().is_ok());
        assert!("fd00::1".parse::<Vip>().is_ok());
        for bad in ["10.0.0.1/24", "127.0.0.1", "224.0.0.1", "0.0.0.0", "mail", "255.255.255.255"] {
            assert!(bad.parse::<Vip>().is_err(), "{bad}");
        }
    }
}
