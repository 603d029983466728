//! Link-layer address of 48 bits: parsed once at the edge, printed as flannel prints it (lower case, colons).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// MAC address, such as `0a:1b:2c:3d:4e:5f`: six bytes in wire order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Turns random bytes into a locally administered unicast address, the form flannel gives its VTEPs
    /// (flannel-compat 6.1).
    pub fn local_unicast(mut bytes: [u8; 6]) -> Self {
        bytes[0] = (bytes[0] & 0xfe) | 0x02;
        Self(bytes)
    }

    /// Returns true for an address that one station may own: neither a group address nor all-zero.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self != Self::default()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = String;

    /// Accepts the six-byte spellings of Go's `net.ParseMAC`: `aa:bb:…`, `aa-bb-…` and `aabb.ccdd.eeff`. Any other text
    /// is an error.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a MAC address such as 0a:1b:2c:3d:4e:5f");
        let (separator, width) = match text.as_bytes().get(2) {
            Some(b':') => (':', 2),
            Some(b'-') => ('-', 2),
            _ => ('.', 4),
        };
        let mut bytes = Vec::with_capacity(6);
        for group in text.split(separator) {
            if group.len() != width || !group.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(bad());
            }
            let value = u16::from_str_radix(group, 16).map_err(|_| bad())?.to_be_bytes();
            bytes.extend_from_slice(&value[2 - width / 2..]);
        }
        bytes.try_into().map(Self).map_err(|_| bad())
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_parses_exactly_the_forms_that_go_accepts() {
        let mac = Mac([0x0a, 0x1b, 0x2c, 0x3d, 0x4e, 0x5f]);
        for text in ["0a:1b:2c:3d:4e:5f", "0A:1B:2C:3D:4E:5F", "0a-1b-2c-3d-4e-5f", "0a1b.2c3d.4e5f"] {
            assert_eq!(text.parse(), Ok(mac), "{text}");
        }
        for text in
            ["", "0a:1b:2c:3d:4e", "0a:1b:2c:3d:4e:5f:60:71", "0a:1b-2c:3d:4e:5f", "+a:1b:2c:3d:4e:5f"]
        {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
        assert_eq!(mac.to_string(), "0a:1b:2c:3d:4e:5f");
    }

    #[test]
    fn a_random_mac_is_local_and_unicast() {
        assert_eq!(Mac::local_unicast([0xff; 6]).0[0], 0xfe);
        assert!(!Mac([1, 0, 0, 0, 0, 0]).is_unicast());
        assert!(!Mac::default().is_unicast());
    }
}
