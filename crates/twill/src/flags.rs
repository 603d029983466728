//! Command line: parses the command and its flags.

mod daemon;
mod help;
mod table;
mod value;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lexopt::{Arg, Parser, ValueExt};
use plan::env_file;

pub(crate) use daemon::Flags;
pub(crate) use value::LogFormat;

/// Text of `twill --help`.
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

/// Command to run, with its flags.
pub(crate) enum Command {
    Daemon(Box<Flags>),
    Status(StatusFlags),
    Diff(DiffFlags),
    Uninstall(UninstallFlags),
    DockerOpts(DockerOptsFlags),
    Help(String),
    Version,
}

/// Flags of `twill status`.
pub(crate) struct StatusFlags {
    pub(crate) json: bool,
    /// True to print a new page each second.
    pub(crate) watch: bool,
    pub(crate) socket: PathBuf,
}

/// Flags of `twill diff`.
pub(crate) struct DiffFlags {
    pub(crate) json: bool,
    pub(crate) source: DiffSource,
}

/// Source of the desired state.
pub(crate) enum DiffSource {
    /// The daemon that runs on this node, at this socket.
    Daemon(PathBuf),
    /// The store, read as a daemon with these flags would read it.
    Store(Box<Flags>),
}

/// Flags of `twill uninstall`.
pub(crate) struct UninstallFlags {
    pub(crate) dry_run: bool,
    pub(crate) extent: Extent,
    pub(crate) subnet_file: PathBuf,
    pub(crate) cache_dir: PathBuf,
}

/// Flags of `twill docker-opts`.
pub(crate) struct DockerOptsFlags {
    pub(crate) subnet_file: PathBuf,
    pub(crate) docker_file: PathBuf,
    /// True to write each option into a variable of its own.
    pub(crate) each: bool,
    /// True to write all options into one variable.
    pub(crate) combined: bool,
    pub(crate) ip_masq: bool,
    /// Name of the variable with all options.
    pub(crate) key: String,
}

/// Part of twill that `twill uninstall` removes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    Everything,
    /// Objects and files that flannel would not have written.
    HandOver,
}

const HINT: &str = "twill --help lists commands and flags";

/// Default subnet file, as in flannel.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// Default socket of the daemon whose subnet file is [`SUBNET_FILE`].
const SOCKET: &str = "/run/flannel/twill.sock";
/// Default options file of that daemon.
const OPTIONS_FILE: &str = "/run/flannel/options.env";
/// Number of the table that `--route-table flannel` means. `make install` makes the name known to ip(8).
const FLANNEL_TABLE: u32 = 8472;
/// Default directory of the leases cache.
const CACHE_DIR: &str = "/var/cache/twill";

/// Returns the default socket of the daemon with that subnet file: `/run/b.env` has `/run/b.env.sock`.
fn socket_of(subnet_file: &Path) -> PathBuf {
    beside(subnet_file, SOCKET, "sock")
}

/// Returns the default options file of the daemon with that subnet file: `/run/b.env` has `/run/b.env.options`.
fn options_file_of(subnet_file: &Path) -> PathBuf {
    beside(subnet_file, OPTIONS_FILE, "options")
}

/// Returns `usual` for [`SUBNET_FILE`], else the path of the subnet file with `suffix`. Two daemons of one node have two
/// subnet files, so that the results never collide.
fn beside(subnet_file: &Path, usual: &str, suffix: &str) -> PathBuf {
    if subnet_file == Path::new(SUBNET_FILE) {
        return usual.into();
    }
    let mut path = subnet_file.as_os_str().to_owned();
    path.push(".");
    path.push(suffix);
    path.into()
}

/// Names and values of the environment's variables.
pub(crate) trait Variables: Iterator<Item = (OsString, OsString)> {}
impl<I: Iterator<Item = (OsString, OsString)>> Variables for I {}

/// Parses a whole command line, which begins with the name of the program. Called as `flanneld` it is `twill daemon`. The
/// error is a message for the user.
pub(crate) fn command(
    mut args: impl Iterator<Item = OsString>,
    variables: impl Variables,
) -> Result<Command, String> {
    let called = args.next().unwrap_or_default();
    let args: Result<Vec<String>, OsString> = args.map(OsString::into_string).collect();
    let args = args.map_err(|arg| format!("{} is not valid UTF-8", arg.display()))?;
    if Path::new(&called).file_name().is_some_and(|name| name == "flanneld") {
        return daemon::parse("flanneld", &args, variables);
    }
    let Some((command, rest)) = args.split_first() else { return Ok(Command::Help(USAGE.into())) };
    match command.as_str() {
        "daemon" => daemon::parse("twill daemon", rest, variables),
        "status" => parsed(status(rest)),
        "diff" => diff(rest, variables),
        "uninstall" => parsed(uninstall(rest)),
        "docker-opts" => parsed(docker_opts(rest)),
        "help" | "-h" | "-help" | "--help" => Ok(Command::Help(USAGE.into())),
        "version" | "-version" | "--version" => Ok(Command::Version),
        other => Err(format!("there is no command {other:?}\n\n{USAGE}")),
    }
}

fn parsed(command: Result<Option<Command>, lexopt::Error>) -> Result<Command, String> {
    match command {
        Ok(Some(command)) => Ok(command),
        Ok(None) => Ok(Command::Help(USAGE.into())),
        Err(error) => Err(format!("{error}\n{HINT}")),
    }
}

/// Parses the flags of `twill status`; `None` if help was asked for.
fn status(args: &[String]) -> Result<Option<Command>, lexopt::Error> {
    let (mut json, mut watch) = (false, false);
    let (mut subnet_file, mut socket) = (PathBuf::from(SUBNET_FILE), None);
    let mut parser = Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("json") => json = true,
            Arg::Long("watch") => watch = true,
            Arg::Long("subnet-file") => subnet_file = parser.value()?.into(),
            Arg::Long("socket") => socket = Some(parser.value()?.into()),
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    let socket = socket.unwrap_or_else(|| socket_of(&subnet_file));
    Ok(Some(Command::Status(StatusFlags { json, watch, socket })))
}

/// Parses the flags of `twill diff`. With `--offline` it takes all flags of the daemon, since it stands in for one.
fn diff(args: &[String], variables: impl Variables) -> Result<Command, String> {
    let (own, rest): (Vec<&String>, Vec<&String>) =
        args.iter().partition(|arg| ["--offline", "--json"].contains(&arg.as_str()));
    let rest: Vec<String> = rest.into_iter().cloned().collect();
    let json = own.iter().any(|arg| *arg == "--json");
    let source = if own.iter().any(|arg| *arg == "--offline") {
        match daemon::parse("twill diff --offline", &rest, variables)? {
            Command::Daemon(flags) => DiffSource::Store(flags),
            other => return Ok(other),
        }
    } else {
        match parsed(status(&rest))? {
            Command::Status(flags) if flags.watch => return Err(format!("there is no flag --watch\n{HINT}")),
            Command::Status(flags) => DiffSource::Daemon(flags.socket),
            other => return Ok(other),
        }
    };
    Ok(Command::Diff(DiffFlags { json, source }))
}

fn uninstall(args: &[String]) -> Result<Option<Command>, lexopt::Error> {
    let mut flags = UninstallFlags {
        dry_run: false,
        extent: Extent::Everything,
        subnet_file: SUBNET_FILE.into(),
        cache_dir: CACHE_DIR.into(),
    };
    let mut parser = Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("dry-run") => flags.dry_run = true,
            Arg::Long("hand-over") => flags.extent = Extent::HandOver,
            Arg::Long("subnet-file") => flags.subnet_file = parser.value()?.into(),
            Arg::Long("cache-dir") => flags.cache_dir = parser.value()?.into(),
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(Command::Uninstall(flags)))
}

fn docker_opts(args: &[String]) -> Result<Option<Command>, lexopt::Error> {
    let mut flags = DockerOptsFlags {
        subnet_file: SUBNET_FILE.into(),
        docker_file: "/run/docker_opts.env".into(),
        each: false,
        combined: false,
        ip_masq: true,
        key: "DOCKER_OPTS".into(),
    };
    let mut parser = Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('f') => flags.subnet_file = parser.value()?.into(),
            Arg::Short('d') => flags.docker_file = parser.value()?.into(),
            Arg::Short('i') => flags.each = true,
            Arg::Short('c') => flags.combined = true,
            Arg::Short('m') => flags.ip_masq = false,
            Arg::Short('k') => flags.key = parser.value()?.string()?,
            Arg::Short('h') | Arg::Long("help") => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    if !env_file::is_name(&flags.key) {
        return Err(format!("-k: {:?} is no name of a variable", flags.key).into());
    }
    Ok(Some(Command::DockerOpts(flags)))
}

#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    daemon::fuzz(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, String> {
        let args = ["/usr/bin/twill"].into_iter().chain(line.split(' '));
        command(args.map(Into::into), std::iter::empty())
    }

    #[test]
    fn a_diff_asks_the_daemon_or_takes_its_flags() {
        assert!(
            matches!(parse("diff --socket /s"), Ok(Command::Diff(DiffFlags { json: false, source: DiffSource::Daemon(socket) })) if socket == *"/s")
        );
        let offline = parse("diff --offline --json --store=/s -iface eth0");
        assert!(
            matches!(offline, Ok(Command::Diff(DiffFlags { json: true, source: DiffSource::Store(flags) })) if flags.iface == ["eth0"])
        );
        assert!(parse("diff --offline --bogus").is_err_and(|error| error.contains("--offline --help")));
        assert!(parse("diff --store=/s").is_err_and(|error| error.contains("--store")));
        assert!(parse("diff --watch").is_err_and(|error| error.contains("--watch")));
    }

    /// The daemon and its clients derive the same socket from the same subnet file.
    #[test]
    fn the_socket_follows_the_subnet_file_unless_it_is_given() {
        for (line, expected) in [
            ("", "/run/flannel/twill.sock"),
            ("--subnet-file=/run/flannel/subnet.env", "/run/flannel/twill.sock"),
            ("--subnet-file=/run/flannel//./subnet.env", "/run/flannel/twill.sock"),
            ("--subnet-file /run/b.env", "/run/b.env.sock"),
            ("--subnet-file=/run/other/subnet.env", "/run/other/subnet.env.sock"),
            ("--subnet-file=/run/b", "/run/b.sock"),
            ("--subnet-file=b.env", "b.env.sock"),
            ("--subnet-file=/run/b.env --socket=/s", "/s"),
            ("--socket=/s --subnet-file=/run/b.env", "/s"),
            ("--socket=/s", "/s"),
        ] {
            let parse = |command: &str| parse(format!("{command} {line}").trim_end());
            let Ok(Command::Status(status)) = parse("status") else { panic!("{line}") };
            let Ok(Command::Diff(DiffFlags { source: DiffSource::Daemon(diff), .. })) = parse("diff") else {
                panic!("{line}")
            };
            let Ok(Command::Daemon(daemon)) = parse("daemon") else { panic!("{line}") };
            assert_eq!([status.socket, diff, daemon.socket], [expected; 3].map(PathBuf::from), "{line}");
        }
    }

    #[test]
    fn a_call_as_flanneld_runs_the_daemon_with_all_its_flags() {
        let flags = |line: &str| match command(line.split(' ').map(Into::into), std::iter::empty()) {
            Ok(Command::Daemon(flags)) => Ok(flags.store),
            Ok(Command::Help(text)) => Err(text),
            Ok(_) => Err("another command".into()),
            Err(error) => Err(error),
        };
        for line in ["flanneld --store=/s", "/opt/bin/flanneld -store /s", "twill daemon --store=/s"] {
            assert_eq!(flags(line), Ok("/s".into()), "{line}");
        }
        assert_eq!(flags("./flanneld status"), Ok(PathBuf::new()), "a word that is no flag");
        assert!(flags("flanneld --help").unwrap_err().starts_with("usage: flanneld [flags]"));
        assert!(flags("twill daemon -h").unwrap_err().starts_with("usage: twill daemon [flags]"));
        assert!(flags("flanneld --bogus").unwrap_err().ends_with("flanneld --help lists the flags"));
        assert!(flags("/opt/flanneld/twill --store=/s").unwrap_err().contains("there is no command"));
    }

    #[test]
    fn docker_opts_accepts_the_short_flags_of_flannels_script() {
        let Ok(Command::DockerOpts(flags)) = parse("docker-opts -imk KEY -f /a -d/b") else { panic!() };
        assert!(flags.each && !flags.combined && !flags.ip_masq && flags.key == "KEY");
        assert_eq!((flags.subnet_file, flags.docker_file), ("/a".into(), "/b".into()));
        let Ok(Command::DockerOpts(flags)) = parse("docker-opts -c") else { panic!() };
        assert!(!flags.each && flags.combined && flags.ip_masq && flags.key == "DOCKER_OPTS");
        assert_eq!(
            (flags.subnet_file, flags.docker_file),
            (SUBNET_FILE.into(), "/run/docker_opts.env".into())
        );
        assert!(matches!(parse("docker-opts -h"), Ok(Command::Help(_))));
        for (line, word) in [("-x", "-x"), ("-k", "-k"), ("-k A=B", "A=B"), ("-f", "-f"), ("stop", "stop")] {
            let error = parse(&format!("docker-opts {line}"));
            assert!(error.is_err_and(|error| error.contains(word) && error.contains("--help")), "{line}");
        }
    }

    #[test]
    fn uninstall_accepts_only_its_own_flags() {
        let Ok(Command::Uninstall(flags)) = parse("uninstall --dry-run --hand-over --subnet-file=/e") else {
            panic!()
        };
        assert!(flags.dry_run && flags.extent == Extent::HandOver && flags.subnet_file == *"/e");
        assert!(parse("uninstall --store=/s").is_err());
    }

    /// Returns the cells of all table rows below a heading of docs/reference/flags.md, until the next one of its level.
    pub(super) fn documented(heading: &str) -> Vec<Vec<String>> {
        let text = include_str!("../../../docs/reference/flags.md");
        let (_, section) = text.split_once(&format!("\n{heading}\n")).unwrap();
        let lines = section.lines().take_while(|line| !line.starts_with("## "));
        let rows = lines.filter(|line| line.starts_with("| `"));
        let cells = |row: &str| {
            row.trim_matches(['|', ' ']).split(" | ").map(|cell| cell.replace("\\|", "|")).collect()
        };
        rows.map(cells).collect()
    }

    /// docs/reference/flags.md lists exactly the lines of the usage, and each of them can be typed.
    #[test]
    fn the_documents_list_every_command_and_no_other() {
        let (_, usage) = USAGE.split_once("usage: ").unwrap();
        let commands: Vec<&str> =
            usage.lines().map(str::trim).filter(|line| line.starts_with("twill ")).collect();
        let listed: Vec<String> =
            documented("## Commands").into_iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
        assert_eq!(listed, commands);
        for line in commands {
            let line =
                line.trim_start_matches("twill ").replace("[flags]", "--store=/s").replace(['[', ']'], "");
            assert!(parse(&line).is_ok(), "{line}");
        }
    }
}
