//! A JSON object as Go's decoder reads it into a struct: keys match in any case, the last of equal keys wins, unknown
//! keys are ignored (flannel-compat 0.4). Not a general JSON layer: syntax is serde_json's part.

use std::fmt;

use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::Value;

/// The members of one object, in the order in which they were written.
#[derive(Debug)]
pub struct Fields(Vec<(String, Value)>);

impl Fields {
    /// Parses one JSON object; the error tells line and column.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(text).map_err(|error| error.to_string())
    }

    /// Takes an object that is the value of another one.
    pub fn of(value: Value) -> Result<Self, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    /// The value of that key, whatever the case of its letters; `null` and absence are the same, as in Go. The error
    /// names the key.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, String> {
        let value = self.0.iter().rev().find(|(name, _)| name.eq_ignore_ascii_case(key));
        match value {
            None | Some((_, Value::Null)) => Ok(None),
            Some((_, value)) => {
                T::deserialize(value.clone()).map(Some).map_err(|error| format!("key {key:?}: {error}"))
            }
        }
    }

    /// Text that is parsed further; empty text counts as absent.
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
