//! Finds doc comments and user-facing strings that open with a fragment. A sentence that begins with "Of" or "Those"
//! does not name its subject.

/// Words that no doc comment and no user-facing text begins with.
const FORBIDDEN: [&str; 15] = [
    "What", "Who", "Whom", "Whose", "Whoever", "Whatever", "Where", "Of", "Those", "That", "So", "The same",
    "And", "Another", "One",
];

/// Files whose string literals are read by operators: flags, warnings, findings, faults of traffic rules, metrics.
const STRINGS: [&str; 8] = [
    "twill/src/flags/table.rs",
    "plan/src/warning.rs",
    "plan/src/warning/node.rs",
    "plan/src/warning/peer.rs",
    "plan/src/warning/store.rs",
    "plan/src/health/finding.rs",
    "plan/src/warning/firewall.rs",
    "twill/src/metrics.rs",
];

/// Returns one line for each doc comment and each user-facing string of the file that opens with a fragment. `name`
/// is the file's path below `crates/`.
pub(crate) fn fragments(name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut above = "";
    for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())) {
        let marker = ["///", "//!"].into_iter().find(|marker| line.starts_with(marker)).unwrap_or_default();
        let first = line[marker.len()..].trim();
        if let Some(word) = opener(first).filter(|_| !marker.is_empty() && marker != above) {
            faults.push(format!("{name}:{number}: a doc comment opens with {word:?}: name its subject"));
        }
        above = marker;
    }
    if STRINGS.contains(&name) {
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in product.lines().enumerate().map(|(at, line)| (at + 1, line)) {
            for literal in line.split('"').skip(1).step_by(2) {
                if let Some(word) = opener(literal) {
                    faults.push(format!("{name}:{number}: a text opens with {word:?}: name its subject"));
                }
            }
        }
    }
    faults
}

/// Returns the forbidden word with which a text opens, in upper or lower case.
fn opener(text: &str) -> Option<&'static str> {
    FORBIDDEN.into_iter().find(|word| {
        let rest = text.get(word.len()..).unwrap_or_default();
        let opens = text.get(..word.len()).is_some_and(|first| first.eq_ignore_ascii_case(word));
        opens && rest.starts_with([' ', ','])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fragment_is_found_only_at_the_start_of_a_comment() {
        let found = |text: &str| fragments("plan/src/x.rs", text).len();
        assert_eq!(found("/// Of the peers.\nstruct X;"), 1);
        assert_eq!(found("//! Those that stay.\n"), 1);
        assert_eq!(found("    /// The same for IPv6.\n"), 1);
        assert_eq!(found("/// Returns the peers\n/// of a node.\nstruct X;"), 0);
        assert_eq!(found("/// Offset of a field.\n/// One of two.\n"), 0);
        assert_eq!(found("// what a plain comment says\n"), 0);
    }

    #[test]
    fn only_the_tables_of_texts_are_checked() {
        let line = "flag(\"iface\", \"NAME\", \"\", \"where the uplink is\")";
        assert_eq!(fragments("twill/src/flags/table.rs", line).len(), 1);
        assert!(fragments("twill/src/flags/table.rs", &line.replace("where", "name of")).is_empty());
        assert!(fragments("twill/src/other.rs", line).is_empty());
    }
}
