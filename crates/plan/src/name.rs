//! Name of a network interface, in sixteen bytes and without an allocation: ten thousand rows carry one each.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Name of 1 to 15 bytes, without `/`, `:` and white space, and neither `.` nor `..`. The kernel demands it in
/// `dev_valid_name`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName {
    bytes: [u8; 15],
    len: u8,
}

impl LinkName {
    /// Returns the name made of a prefix and a number, cut off after 15 bytes.
    pub(crate) fn numbered(prefix: &str, number: u32) -> Self {
        Self::truncated(&format!("{prefix}{number}"))
    }

    /// Returns the text as a name, cut off after 15 bytes. The characters are not checked.
    pub(crate) fn truncated(text: &str) -> Self {
        let mut bytes = [0; 15];
        let len = text.len().min(15);
        bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
        Self { bytes, len: len as u8 }
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl FromStr for LinkName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unfit = |c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace();
        if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.contains(unfit) {
            return Err(format!(
                "{text:?} cannot be an interface name: 1 to 15 bytes without '/', ':' or blanks"
            ));
        }
        Ok(Self::truncated(text))
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Serialize for LinkName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for LinkName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_numbered_name_contains_the_number_in_decimal() {
        for number in [0, 1, 9, 10, 99, 100, 4096, 16_777_215, u32::MAX] {
            for prefix in ["flannel.", "flannel-v6."] {
                let name = LinkName::numbered(prefix, number);
                assert_eq!(name, LinkName::truncated(&format!("{prefix}{number}")));
            }
        }
    }
}
