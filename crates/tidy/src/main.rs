//! Checks the source tree against the rules of ARCHITECTURE.md and CONTRIBUTING.md.
//!
//! - Text: first paragraphs, first words of comments and messages, names of types, left-overs.
//! - Documents: links, and references to flannel's contract.
//! - Structure: imports between modules, and dependencies.
//!
//! File sizes are only reported. The compiler and clippy check functions, arguments, unwrap and unsafe; this program does
//! not repeat them. `cargo run -p tidy -- graph [DIR]` prints figures of the imports between modules. Without DIR they are
//! those of this tree.

mod dependencies;
mod imports;
mod layers;
mod links;
mod openers;
mod references;
mod sources;
mod types;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|command| command == "graph") {
        let report = layers::report(&args.next().map_or(root, PathBuf::from));
        return report.map_or_else(
            |error| fail(&error),
            |report| {
                print!("{report}");
                ExitCode::SUCCESS
            },
        );
    }
    let faults = sources::findings(&root).and_then(|sources::Findings { mut faults, report }| {
        report.iter().for_each(|line| println!("tidy: {line}"));
        faults.extend(links::dead(&root)?);
        faults.extend(layers::faults(&root)?);
        faults.extend(dependencies::faults(&root)?);
        Ok(faults)
    });
    match faults {
        Ok(faults) if faults.is_empty() => ExitCode::SUCCESS,
        Ok(faults) => {
            faults.iter().for_each(|fault| eprintln!("tidy: {fault}"));
            ExitCode::FAILURE
        }
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("tidy: {error:#}");
    ExitCode::FAILURE
}
