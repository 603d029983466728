//! The `twill` binary: parses the command line, runs the command and turns its result into an exit code.

mod backoff;
mod cache;
mod client;
mod confine;
mod daemon;
mod diff;
mod diff_requests;
mod docker_opts;
mod errno;
mod files;
mod flags;
mod footprint;
#[cfg(fuzzing)]
pub mod fuzz;
mod http;
mod identity;
mod locks;
mod logging;
mod memory;
mod metrics;
mod notify;
mod own_lease;
mod pass;
mod probe;
mod readiness;
mod reconcile;
mod report;
mod status;
mod subnet_file;
mod trigger;
mod uninstall;
mod warning_log;

use std::process::ExitCode;

use flags::Command;

fn main() -> ExitCode {
    let outcome = match flags::command(std::env::args_os(), std::env::vars_os()) {
        Ok(Command::Daemon(flags)) => {
            memory::settle();
            daemon::run(&flags)
        }
        Ok(Command::Status(flags)) => status::run(&flags),
        Ok(Command::Uninstall(flags)) => uninstall::run(&flags),
        Ok(Command::DockerOpts(flags)) => docker_opts::run(&flags),
        Ok(Command::Diff(flags)) => {
            return diff::run(&flags).unwrap_or_else(|error| {
                eprintln!("twill: {}", errno::describe(&error));
                ExitCode::from(2)
            });
        }
        Ok(Command::Help(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Ok(Command::Version) => {
            // flannel prints its version on stderr only; other tools look for it on stdout.
            println!("{}", env!("CARGO_PKG_VERSION"));
            eprintln!("{}", env!("CARGO_PKG_VERSION"));
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
            eprintln!("twill: {}", errno::describe(&error));
            ExitCode::FAILURE
        }
    }
}
