//! Checks each reference to flannel's contract, such as `flannel-compat 6.1`. It must lead to a section or row in
//! `docs/flannel/`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

/// Names of the documents as references spell them: `NAME 6.1` stands for section 6.1 of `docs/flannel/NAME.md`.
const DOCUMENTS: [&str; 3] = ["flannel-compat", "flannel-backends", "flannel-faults"];
/// Words that may stand between two numbers of one reference: "2.2, 4.5", "2.1 to 2.3", "83 and 85".
const BETWEEN: [&str; 3] = [", ", " to ", " and "];

/// A document, and the numbers of its sections or rows that references may name.
pub(crate) struct Document {
    name: &'static str,
    numbers: BTreeSet<String>,
}

/// Reads the documents of `docs/flannel/`. Fails if one of them is missing, or has no numbered section or row.
pub(crate) fn documents(root: &Path) -> anyhow::Result<Vec<Document>> {
    let read = |name: &'static str| {
        let path = root.join("docs/flannel").join(name).with_extension("md");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let numbers = numbers(name, &text);
        if numbers.is_empty() {
            bail!("{} has no numbered section or row", path.display());
        }
        Ok(Document { name, numbers })
    };
    DOCUMENTS.into_iter().map(read).collect()
}

/// Returns one line for each reference in `text` to a section or row that does not exist. `file` is the name of the
/// text.
pub(crate) fn dead(documents: &[Document], file: &str, text: &str) -> Vec<String> {
    let mut dead = Vec::new();
    for Document { name, numbers } in documents {
        for (at, _) in text.match_indices(&format!("{name} ")) {
            for number in referred(&text[at + name.len() + 1..]) {
                if !numbers.contains(number) {
                    dead.push(format!(
                        "{file} refers to {name} {number}, which docs/flannel/{name}.md lacks"
                    ));
                }
            }
        }
    }
    dead
}

/// Returns the numbers at the start of `text`: `2.2` and `4.5` for "2.2, 4.5). The rest".
fn referred(mut text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    loop {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let number = text[..end].trim_end_matches('.');
        if number.is_empty() {
            return found;
        }
        found.push(number);
        let rest = &text[number.len()..];
        let Some(next) = BETWEEN.iter().find_map(|between| rest.strip_prefix(between)) else { return found };
        text = next;
    }
}

/// Returns the numbers of the headings ("## 3. ", "### 6.1 ") and of the items of section 0 (as `0.4`). For the list of
/// faults it returns the numbers of the rows instead ("| 85 |").
fn numbers(name: &str, text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut section = "";
    for line in text.lines() {
        let heading = line.strip_prefix("## ").or_else(|| line.strip_prefix("### "));
        let first =
            heading.unwrap_or(line).split([' ', '|']).find(|word| !word.is_empty()).unwrap_or_default();
        let number = first.trim_end_matches('.');
        let numbered = number.starts_with(|c: char| c.is_ascii_digit());
        if heading.is_some() {
            section = number;
        }
        match heading {
            _ if !numbered => {}
            Some(_) if name != "flannel-faults" => _ = found.insert(number.to_owned()),
            None if line.starts_with("| ") && name == "flannel-faults" => _ = found.insert(number.to_owned()),
            None if section == "0" && first.ends_with('.') => _ = found.insert(format!("0.{number}")),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_leads_to_a_section_an_item_or_a_row() {
        let compat = "## 0. Rules\n1. first\n4. case\n## 6. Backends\n### 6.1 vxlan\n1. an item\n";
        let faults = "### 1. Lists\n| # | what |\n| 85 | crash |\n| 95a | MTU |\n";
        let document = |name, text| Document { name, numbers: numbers(name, text) };
        let documents = [document("flannel-compat", compat), document("flannel-faults", faults)];
        let dead = |text| dead(&documents, "x.rs", text).len();
        assert_eq!(dead("(flannel-compat 6.1, 6). As flannel-compat 0.4 and 6 say, flannel-faults 85."), 0);
        assert_eq!(dead("flannel-compat 6.2"), 1);
        assert_eq!(dead("flannel-compat 6 to 6.3, 9 and"), 2);
        assert_eq!(dead("flannel-compat 0.2"), 1);
        assert_eq!(dead("flannel-faults 1 and 86"), 2);
        assert_eq!(dead("see flannel-compat for more"), 0);
    }
}
