//! The `twill` binary: parses the command line, runs the command and turns its result into an exit code.

mod backoff;
mod cache;
mod client;
mod confine;
mod daemon;
mod diff;
mod docker_opts;
mod env_file;
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
mod notebook;
mod notify;
mod own_lease;
mod probe;
mod questions;
mod reconcile;
mod report;
mod round;
mod status;
mod subnet_file;
mod trigger;
mod uninstall;

use std::process::ExitCode;

use flags::Command;

const USAGE: &str = "\
twill gives this Kubernetes node a pod subnet and connects its pods with those of all other nodes.

usage: twill daemon [flags]
             run the daemon in the foreground; twill daemon --help lists the flags
       twill status [--json] [--watch] [--subnet-file FILE] [--socket FILE]
             show the state of this node's daemon; --subnet-file names the daemon if its subnet file is not the default
       twill diff [--json] [--subnet-file FILE] [--socket FILE]
             list the ops that would bring the kernel to its desired state; exit code 1 if there are any
       twill diff --offline [--json] [flags]
             compute the same list from store and kernel without a daemon; takes the daemon's flags
       twill uninstall [--dry-run] [--hand-over] [--subnet-file FILE] [--cache-dir DIR]
             remove twill from this node; the daemon must be stopped; with --hand-over, leave to flannel what flannel
             would have written
       twill docker-opts [-i] [-c] [-m] [-k NAME] [-f FILE] [-d FILE]
             write Docker options for the subnet file (-f) to /run/docker_opts.env or -d FILE, as mk-docker-opts.sh does:
             with -i one variable per option, with -c all in DOCKER_OPTS or -k NAME, by default both; -m omits --ip-masq
       twill --version
       twill --help

Called as flanneld it is twill daemon.
";

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
                eprintln!("twill: {}", errno::in_words(&error));
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
            eprintln!("twill: {}", errno::in_words(&error));
            ExitCode::FAILURE
        }
    }
}
