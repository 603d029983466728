//! Finds two public types of one crate that share a name. A reader who greps for a type finds one type.

use std::collections::BTreeMap;

/// Keywords that define a type.
const KEYWORDS: [&str; 4] = ["struct", "enum", "trait", "type"];

/// Public types by crate and name, each with the file that defines it.
#[derive(Debug, Default)]
pub(crate) struct Types(BTreeMap<(String, String), String>);

impl Types {
    /// Adds the public types that a file defines outside its tests. Returns one line for each name that another file of
    /// the crate has already. `name` is the file's path below `crates/`.
    pub(crate) fn add(&mut self, name: &str, code: &[&str]) -> Vec<String> {
        let krate = name.split('/').next().unwrap_or_default();
        let mut faults = Vec::new();
        for defined in code.iter().filter_map(|line| defined(line)) {
            let key = (krate.to_owned(), defined.to_owned());
            let first = self.0.entry(key).or_insert_with(|| name.to_owned());
            if first != name {
                faults.push(format!("{name} and {first} both define a public type {defined}: rename one"));
            }
        }
        faults
    }
}

/// Returns the name of the public type that a line defines.
fn defined(line: &str) -> Option<&str> {
    let (keyword, rest) = line.strip_prefix("pub ")?.split_once(' ')?;
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    KEYWORDS.contains(&keyword).then(|| &rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_shared_by_two_public_types_of_a_crate_is_found() {
        let mut types = Types::default();
        assert!(
            types.add("store/src/claim.rs", &["pub struct Lease {", "pub(crate) struct Key(u8);"]).is_empty()
        );
        assert!(
            types.add("store/src/view.rs", &["pub(crate) struct Key(u8);", "pub fn lease() {}"]).is_empty()
        );
        assert!(types.add("kernel/src/lease.rs", &["pub enum Lease {"]).is_empty());
        assert_eq!(
            types.add("store/src/dir.rs", &["pub type Lease<T> = Vec<T>;"]),
            ["store/src/dir.rs and store/src/claim.rs both define a public type Lease: rename one"]
        );
    }
}
