//! Finds links in the documents that lead to no file, or to no heading of a document.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::Context;

/// Text of a document, and the anchors of its headings.
struct Document {
    text: String,
    anchors: BTreeSet<String>,
}

/// Returns one line for each dead link of the Markdown files in `root` and below `docs/`. Links to other sites are not
/// followed. Fails if a document cannot be read.
pub(crate) fn dead(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut documents = BTreeMap::new();
    collect(root, Path::new(""), false, &mut documents)?;
    collect(root, Path::new("docs"), true, &mut documents)?;
    let mut faults = Vec::new();
    for (name, document) in &documents {
        for link in links(&document.text) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { name.clone() } else { beside(name, path) };
            let is_dead = match documents.get(&target) {
                Some(document) => !anchor.is_empty() && !document.anchors.contains(anchor),
                None => !root.join(&target).exists(),
            };
            if is_dead {
                faults.push(format!("{}: the link to {link} leads nowhere", name.display()));
            }
        }
    }
    Ok(faults)
}

fn collect(
    root: &Path,
    folder: &Path,
    deep: bool,
    documents: &mut BTreeMap<PathBuf, Document>,
) -> anyhow::Result<()> {
    let dir = root.join(folder);
    for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let name = folder.join(entry.file_name());
        if deep && entry.path().is_dir() {
            collect(root, &name, deep, documents)?;
        } else if name.extension().is_some_and(|extension| extension == "md") {
            let text = fs::read_to_string(entry.path()).with_context(|| name.display().to_string())?;
            let anchors = prose(&text).filter(|line| line.starts_with('#')).map(anchor).collect();
            documents.insert(name, Document { text, anchors });
        }
    }
    Ok(())
}

/// Returns the lines outside code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let fence = line.starts_with("```");
        is_code ^= fence;
        !is_code && !fence
    })
}

/// Returns the anchor that GitHub gives to a heading: `## Read `twill status`` has `read-twill-status`.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Returns the targets of the links in a document, without those that lead to another site.
fn links(text: &str) -> Vec<&str> {
    let targets = prose(text).flat_map(|line| line.split("](").skip(1));
    let targets = targets.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    targets.filter(|target| !target.contains("://") && !target.contains(' ')).collect()
}

/// Returns the path that a link in `document` names, without `.` and `..`.
fn beside(document: &Path, link: &str) -> PathBuf {
    let mut path = document.parent().map(Path::to_path_buf).unwrap_or_default();
    for part in Path::new(link).components() {
        match part {
            Component::ParentDir => _ = path.pop(),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_no_file_or_no_heading_is_found() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(root.path().join(name), text).unwrap();
        fs::create_dir_all(root.path().join("docs/reference")).unwrap();
        write(
            "README.md",
            "[one](docs/one.md#read-twill-status), [none](docs/none.md), [site](https://example.com/x)",
        );
        write(
            "docs/one.md",
            "## Read `twill status`\n```\n[code](nothing.md)\n```\n[up](../README.md) [flags](reference/flags.md#no)",
        );
        write("docs/reference/flags.md", "# Flags\n[same](#flags) [one](../one.md)");
        let faults = dead(root.path()).unwrap();
        let found = |text: &str| faults.iter().any(|fault| fault.contains(text));
        assert!(
            found("README.md: the link to docs/none.md")
                && found("docs/one.md: the link to reference/flags.md#no")
        );
        assert_eq!(faults.len(), 2, "{faults:?}");
    }
}
