//! JSON object that is read as Go's decoder reads it into a struct (flannel-compat 0.4). Keys match in any case, the last
//! of equal keys that is not null wins, and unknown keys are ignored. serde_json checks the JSON syntax itself.

use std::fmt;

use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::value::RawValue;

/// Members of one object, in the order in which they were written. Each value is kept as text, so a member that is not
/// read is never interpreted.
#[derive(Debug)]
pub struct Fields(Vec<(String, Box<RawValue>)>);

impl Fields {
    /// Parses one JSON object. The error names line and column.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(text).map_err(|error| error.to_string())
    }

    /// Parses an object that is the value of a member of another object. Any other value is an error.
    pub fn of(value: &RawValue) -> Result<Self, String> {
        serde_json::from_str(value.get()).map_err(|error| error.to_string())
    }

    /// Returns the text of the key's value, whatever the case of the key's letters. `null` counts as absent: as in Go, it
    /// leaves the value that an earlier equal key has set.
    pub fn raw(&self, key: &str) -> Option<&RawValue> {
        let mut values = self.0.iter().rev().filter(|(_, value)| value.get() != "null");
        values.find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| &**value)
    }

    /// Returns the value of the key; `None` if it is absent. The error names the key.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, String> {
        let value = self.raw(key).map(|value| serde_json::from_str(value.get())).transpose();
        value.map_err(|error: serde_json::Error| format!("key {key:?}: {}", without_place(&error)))
    }

    /// Returns the key's text after parsing it further; empty text counts as absent. The error names the key and the
    /// text.
    pub fn parsed<T>(&self, key: &str) -> Result<Option<T>, String>
    where
        T: std::str::FromStr<Err: fmt::Display>,
    {
        match self.get::<String>(key)? {
            Some(text) if !text.is_empty() => {
                text.parse().map(Some).map_err(|error| format!("key {key:?}: {text:?}: {error}"))
            }
            _ => Ok(None),
        }
    }
}

/// Returns the error's text without line and column: they count within the value, and the reader has the whole text.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map(|(text, _)| text.to_owned()).unwrap_or(text)
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Fields(members))
            }
        }
        deserializer.deserialize_map(Members).map_err(de::Error::custom)
    }
}
