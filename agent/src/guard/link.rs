//! Interfaces and hardware addresses.

use super::sys;
use std::{fmt, io, str::FromStr};

/// Not a name an interface can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no interface name: use 1 to 15 printable characters without '/', ':' and quotes")]
pub struct IfNameError(String);

/// Name of an interface as the kernel keys it: 16 bytes, padded with zeros. `Copy`: the renewal thread allocates
/// nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName([u8; libc::IFNAMSIZ]);

impl IfName {
    /// # Errors
    /// Longer than 15 bytes, empty, or with characters that an `nft` script can't quote.
    pub fn new(name: &str) -> Result<Self, IfNameError> {
        let usable = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'"' | b'\'' | b'\\' | b'*');
        let bad = name.is_empty() || name.len() >= libc::IFNAMSIZ || !name.bytes().all(usable);
        if bad || name == "." || name == ".." {
            return Err(IfNameError(name.to_owned()));
        }
        let mut bytes = [0; libc::IFNAMSIZ];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Ok(Self(bytes))
    }

    pub(super) fn from_key(bytes: [u8; libc::IFNAMSIZ]) -> Option<Self> {
        let end = bytes.iter().position(|b| *b == 0)?;
        std::str::from_utf8(&bytes[..end]).ok().and_then(|name| Self::new(name).ok())
    }

    pub(super) fn key(&self) -> &[u8; libc::IFNAMSIZ] {
        &self.0
    }

    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|b| *b == 0).unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..end]).unwrap_or("")
    }
}

impl FromStr for IfName {
    type Err = IfNameError;
    fn from_str(name: &str) -> Result<Self, IfNameError> {
        Self::new(name)
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Not a hardware address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no hardware address: give six pairs of hexadecimal digits, as in 52:54:00:12:34:56")]
pub struct MacAddrError(String);

/// An Ethernet hardware address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    pub(super) const BROADCAST: MacAddr = MacAddr([0xff; 6]);
}

impl FromStr for MacAddr {
    type Err = MacAddrError;
    fn from_str(text: &str) -> Result<Self, MacAddrError> {
        let bad = || MacAddrError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            // Digits alone: from_str_radix would take "+f".
            let digits = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            let part = parts.next().filter(digits).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An interface that is there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: IfName,
    /// The kernel's number for it.
    pub index: u32,
    /// Its hardware address.
    pub mac: MacAddr,
}

impl Link {
    /// Looks the interface up.
    ///
    /// # Errors
    /// `ENODEV` when there is none of this name.
    pub fn find(name: IfName) -> io::Result<Self> {
        let (index, mac) = sys::link(name.key())
            .map_err(|error| io::Error::new(error.kind(), format!("interface {name}: {error}")))?;
        Ok(Self { name, index, mac: MacAddr(mac) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_checked() {
        for good in ["eth0", "br-lan.7", "vnet12"] {
            assert_eq!(IfName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "a/b", "sixteen-bytes-xx", "a b", "a\"b", "eth*"] {
            assert!(IfName::new(bad).is_err(), "{bad}");
        }
        assert_eq!("52:54:00:12:34:5F".parse::<MacAddr>().unwrap().to_string(), "52:54:00:12:34:5f");
        for bad in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "5:54:00:12:34:567", "zz:54:00:12:34:56"] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }
}
