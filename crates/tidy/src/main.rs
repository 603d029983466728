//! Checks the source tree against the rules of ARCHITECTURE.md. The rules are about first paragraphs, the first words of
//! comments and texts, left-overs, links of documents, references to flannel's contract, and dependencies. File sizes are
//! only reported. The compiler and clippy check functions, arguments, unwrap and unsafe; this program does not repeat
//! them.

mod dependencies;
mod links;
mod openers;
mod references;
mod sources;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let faults = sources::findings(&root).and_then(|sources::Findings { mut faults, report }| {
        report.iter().for_each(|line| println!("tidy: {line}"));
        faults.extend(links::dead(&root)?);
        faults.extend(dependencies::faults(&root)?);
        Ok(faults)
    });
    match faults {
        Ok(faults) if faults.is_empty() => ExitCode::SUCCESS,
        Ok(faults) => {
            faults.iter().for_each(|fault| eprintln!("tidy: {fault}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("tidy: {error:#}");
            ExitCode::FAILURE
        }
    }
}
