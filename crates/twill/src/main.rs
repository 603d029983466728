//! The binary: which command was asked for, and nothing else.

mod backoff;
mod daemon;
mod flags;
mod http;
mod locks;
mod logging;
mod metrics;
mod notebook;
mod own_lease;
mod reconcile;
mod report;
mod round;
mod status;
mod subnet_file;
mod trigger;

use std::process::ExitCode;

use flags::Command;

const USAGE: &str = "\
twill gives this Kubernetes node a pod subnet and makes the pods of all nodes reach each other.

usage: twill daemon [flags]          run on this node (twill daemon --help lists the flags)
       twill status [--json]         what this node's daemon does and sees
       twill --version
";

fn main() -> ExitCode {
    let outcome = match flags::command(std::env::args_os().skip(1)) {
        Ok(Command::Daemon(flags)) => daemon::run(&flags),
        Ok(Command::Status(flags)) => status::run(&flags),
        Ok(Command::Help(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Ok(Command::Version) => {
            println!("{}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("twill: {error}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("twill: {error:#}");
            ExitCode::FAILURE
        }
    }
}
