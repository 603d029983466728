//! Holds the tree to the budgets of ARCHITECTURE.md: sizes, first paragraphs, who may depend on what. What the compiler
//! and clippy can hold (functions, arguments, unwrap, unsafe) is theirs and not repeated here.

mod dependencies;
mod sources;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let faults = sources::faults(&root).and_then(|mut faults| {
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
