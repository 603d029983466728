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
twill gives this Kubernetes node a pod subnet and makes the pods of all nodes reach each other.

usage: twill daemon [flags]
             run on this node; twill daemon --help lists the flags
       twill status [--json] [--watch] [--subnet-file FILE] [--socket FILE]
             what this node's daemon does and sees; --subnet-file is that of the daemon to ask, where it is not the usual
       twill diff [--json] [--subnet-file FILE] [--socket FILE]
             the steps that would make the kernel right; exit code 1 if there are any
       twill diff --offline [--json] [flags]
             the same from store and kernel, without a daemon; takes the daemon's flags
       twill uninstall [--dry-run] [--hand-over] [--subnet-file FILE] [--cache-dir DIR]
             remove all that is twill's from this node, the daemon being stopped; with --hand-over only what flannel
             would not have written, so that flannel can go on
       twill docker-opts [-i] [-c] [-m] [-k NAME] [-f FILE] [-d FILE]
             options for Docker that fit this node's subnet, as mk-docker-opts.sh writes them: from the subnet file into
             /run/docker_opts.env or -d FILE, with -i each in a variable, with -c all in DOCKER_OPTS or -k NAME, else
             both; -m leaves --ip-masq out
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
