//! Checks rules for the text of source files, and reports their sizes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::types::Types;
use crate::{openers, references};

/// Maximum number of code lines in a file that is not reported. Blank lines, comments and tests do not count.
const LARGE_FILE: usize = 400;
const PRODUCT_CRATES: [&str; 5] = ["plan", "kernel", "store", "twill", "cni"];
/// Words that mark unfinished work. They are assembled here, so that this file does not contain them.
const UNFINISHED: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("to", "do!("), concat!("unimple", "mented!(")];

/// Names of Linux interfaces that only the crate `kernel` may use in the product (ARCHITECTURE.md, invariant 3).
const KERNEL_ONLY: [&str; 3] = ["/proc/sys/", "NETLINK_", "AF_NETLINK"];

/// Result of reading all source files.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Broken rules, one line each; any of them fails the check.
    pub(crate) faults: Vec<String>,
    /// Sizes that a reviewer may want to know, one line each; they never fail the check.
    pub(crate) report: Vec<String>,
}

/// Reads every Rust file below `crates/`. Fails if a file or a document of `docs/flannel/` cannot be read.
pub(crate) fn findings(root: &Path) -> anyhow::Result<Findings> {
    let mut files = Vec::new();
    collect(&root.join("crates"), &mut files)?;
    let documents = references::documents(root)?;
    let (mut faults, mut report, mut product) = (Vec::new(), Vec::new(), 0);
    let mut types = Types::default();
    for path in files {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let name = path.strip_prefix(root.join("crates")).unwrap_or(&path).display().to_string();
        // The test of the reference check itself names sections that do not exist.
        if name != "tidy/src/references.rs" {
            faults.extend(references::dead(&documents, &name, &text));
        }
        if !text.starts_with("//! ") {
            faults.push(format!("{name} does not open with a //! paragraph that says what it is for"));
        }
        // The tests of this check hold fragments themselves.
        if name != "tidy/src/openers.rs" {
            faults.extend(openers::fragments(&name, &text));
        }
        for word in UNFINISHED.iter().filter(|word| text.contains(**word)) {
            faults.push(format!("{name} has a left-over {word}"));
        }
        if text.contains(concat!("#[ig", "nore")) {
            faults.push(format!("{name} ignores a test: make it pass or delete it"));
        }
        if !is_test(&name) {
            let product_crate =
                PRODUCT_CRATES.iter().find(|product| name.starts_with(&format!("{product}/")));
            let code = code(&text);
            faults.extend(types.add(&name, &code));
            if product_crate.is_some_and(|product| *product != "kernel") {
                for word in KERNEL_ONLY.iter().filter(|word| code.iter().any(|line| line.contains(**word))) {
                    faults.push(format!("{name} uses {word}, which is kernel's alone"));
                }
            }
            let lines = code.len();
            if lines > LARGE_FILE {
                report.push(format!("{name} has {lines} code lines; does it hold more than one concept?"));
            }
            product += if product_crate.is_some() { lines } else { 0 };
        }
    }
    report.push(format!("the product has {product} code lines"));
    Ok(Findings { faults, report })
}

/// Returns true if the path shows that a file holds only tests: `x/tests/y.rs` or `x/tests.rs`.
pub(crate) fn is_test(name: &str) -> bool {
    name.contains("/tests/") || name.ends_with("/tests.rs")
}

/// Adds all Rust files below `dir` to `files`.
pub(crate) fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Returns the lines that are neither blank nor comment, without the tests at the end of the file.
fn code(text: &str) -> Vec<&str> {
    let product = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    product.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).collect()
}
