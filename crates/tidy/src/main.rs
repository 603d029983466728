//! Holds the tree to the rules of ARCHITECTURE.md: first paragraphs, left-overs, references to flannel's contract, who may depend on what. It reports sizes. What the compiler
//! and clippy can hold (functions, arguments, unwrap, unsafe) is theirs and not repeated here.

mod dependencies;
mod references;
mod sources;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let faults = sources::findings(&root).and_then(|sources::Findings { mut faults, report }| {
        report.iter().for_each(|line| println!("tidy: {line}"));
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
