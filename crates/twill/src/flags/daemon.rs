//! The daemon's flags: Go's syntax, since flannel's manifests and unit files are to work as they are (flannel-compat 1.1).
//! It parses and explains; it decides nothing.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use plan::state::MAIN_TABLE;

use super::{CACHE_DIR, Command, FLANNEL_TABLE, SOCKET, SUBNET_FILE};

/// Flags of `twill daemon`, by flannel's names.
#[derive(Clone, Debug)]
pub(crate) struct Flags {
    pub(crate) store: PathBuf,
    pub(crate) iface: Vec<String>,
    pub(crate) iface_regex: Vec<String>,
    pub(crate) iface_can_reach: Option<IpAddr>,
    pub(crate) public_ip: Option<Ipv4Addr>,
    pub(crate) public_ipv6: Option<Ipv6Addr>,
    pub(crate) subnet_file: PathBuf,
    pub(crate) ip_masq: bool,
    pub(crate) healthz_ip: IpAddr,
    /// 0: no server.
    pub(crate) healthz_port: u16,
    pub(crate) socket: PathBuf,
    /// Where our routes are.
    pub(crate) route_table: u32,
    /// Where a copy of the last good leases outlives a reboot.
    pub(crate) cache_dir: PathBuf,
    /// So long peers are kept that vanish from the store together with most others.
    pub(crate) shrink_grace: Duration,
    pub(crate) config_reload: bool,
}

struct Flag {
    name: &'static str,
    /// What stands for the value in the help; a flag without one is boolean.
    value: Option<&'static str>,
    default: &'static str,
    help: &'static str,
    set: fn(&mut Raw, String) -> Result<(), String>,
}

/// Flags as far as one by one can tell.
struct Raw {
    store: Option<PathBuf>,
    flags: Flags,
}

const FLAGS: &[Flag] = &[
    Flag {
        name: "store",
        value: Some("DIR"),
        default: "",
        help: "lease directory of this machine: DIR/config and DIR/subnets/",
        set: |raw, value| {
            raw.store = Some(value.into());
            Ok(())
        },
    },
    Flag {
        name: "iface",
        value: Some("NAME|IP"),
        default: "",
        help: "interface for traffic between nodes, may be repeated: the first that is there; without it the default route's",
        set: |raw, value| {
            raw.flags.iface.extend(some(value));
            Ok(())
        },
    },
    Flag {
        name: "iface-regex",
        value: Some("REGEX"),
        default: "",
        help: "the same by a pattern of its addresses, or else of its name; may be repeated, tried after all --iface",
        set: |raw, value| {
            raw.flags.iface_regex.extend(some(value));
            Ok(())
        },
    },
    Flag {
        name: "iface-can-reach",
        value: Some("IP"),
        default: "",
        help: "the same by the kernel's way to that address, tried last",
        set: |raw, value| {
            raw.flags.iface_can_reach = some(value).map(|value| value_of(&value)).transpose()?;
            Ok(())
        },
    },
    Flag {
        name: "public-ip",
        value: Some("IP"),
        default: "",
        help: "IPv4 address announced to other nodes; without it the interface's",
        set: |raw, value| {
            raw.flags.public_ip = some(value).map(|value| value_of(&value)).transpose()?;
            Ok(())
        },
    },
    Flag {
        name: "public-ipv6",
        value: Some("IP"),
        default: "",
        help: "IPv6 address announced to other nodes; without it the interface's",
        set: |raw, value| {
            raw.flags.public_ipv6 = some(value).map(|value| value_of(&value)).transpose()?;
            Ok(())
        },
    },
    Flag {
        name: "subnet-file",
        value: Some("FILE"),
        default: SUBNET_FILE,
        help: "where this node's subnet and MTU are written for the CNI plugin",
        set: |raw, value| {
            raw.flags.subnet_file = value.into();
            Ok(())
        },
    },
    Flag {
        name: "route-table",
        value: Some("TABLE"),
        default: "main",
        help: "routing table of the pods' routes: main, flannel (8472) or a number; any but main gets a rule",
        set: |raw, value| {
            raw.flags.route_table = route_table(&value)?;
            Ok(())
        },
    },
    Flag {
        name: "cache-dir",
        value: Some("DIR"),
        default: CACHE_DIR,
        help: "where the last good leases are kept, for a reboot while the store is away; empty keeps none",
        set: |raw, value| {
            raw.flags.cache_dir = value.into();
            Ok(())
        },
    },
    Flag {
        name: "ip-masq",
        value: None,
        default: "false",
        help: "what FLANNEL_IPMASQ says in the subnet file",
        set: |raw, value| {
            raw.flags.ip_masq = boolean(&value)?;
            Ok(())
        },
    },
    Flag {
        name: "healthz-ip",
        value: Some("IP"),
        default: "0.0.0.0",
        help: "address of the server of /healthz, /readyz and /metrics",
        set: |raw, value| {
            raw.flags.healthz_ip = value_of(&value)?;
            Ok(())
        },
    },
    Flag {
        name: "healthz-port",
        value: Some("PORT"),
        default: "0",
        help: "its port; 0 starts no server",
        set: |raw, value| {
            raw.flags.healthz_port = value_of(&value)?;
            Ok(())
        },
    },
    Flag {
        name: "config-reload",
        value: None,
        default: "true",
        help: "follow changes of the network config; false reads it once, as flannel does",
        set: |raw, value| {
            raw.flags.config_reload = boolean(&value)?;
            Ok(())
        },
    },
    Flag {
        name: "shrink-grace",
        value: Some("TIME"),
        default: "5m",
        help: "keep peers so long when more than half of them vanish from the store at once",
        set: |raw, value| {
            raw.flags.shrink_grace = duration(&value)?;
            Ok(())
        },
    },
    Flag {
        name: "socket",
        value: Some("FILE"),
        default: SOCKET,
        help: "unix socket that twill status and twill diff ask",
        set: |raw, value| {
            raw.flags.socket = value.into();
            Ok(())
        },
    },
];

/// Parses what follows the command.
pub(super) fn parse(args: &[String]) -> Result<Command, String> {
    let flags = Flags {
        store: PathBuf::new(),
        iface: Vec::new(),
        iface_regex: Vec::new(),
        iface_can_reach: None,
        public_ip: None,
        public_ipv6: None,
        subnet_file: SUBNET_FILE.into(),
        route_table: MAIN_TABLE,
        cache_dir: CACHE_DIR.into(),
        ip_masq: false,
        healthz_ip: Ipv4Addr::UNSPECIFIED.into(),
        healthz_port: 0,
        socket: SOCKET.into(),
        shrink_grace: Duration::from_secs(300),
        config_reload: true,
    };
    let mut raw = Raw { store: None, flags };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(name) =
            arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).filter(|name| !name.is_empty())
        else {
            break;
        };
        let (name, attached) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        match name {
            "h" | "help" => return Ok(Command::Help(help())),
            "version" => return Ok(Command::Version),
            _ => {}
        }
        let flag = FLAGS.iter().find(|flag| flag.name == name);
        let flag =
            flag.ok_or_else(|| format!("there is no flag --{name}; twill daemon --help lists them"))?;
        let value = match (attached, flag.value) {
            (Some(value), _) => value,
            (None, None) => "true".into(),
            (None, Some(what)) => {
                args.next().cloned().ok_or_else(|| format!("--{name} needs a value: {what}"))?
            }
        };
        (flag.set)(&mut raw, value).map_err(|error| format!("--{name}: {error}"))?;
    }
    let store = raw.store.ok_or("no store: name a lease directory with --store DIR")?;
    Ok(Command::Daemon(Box::new(Flags { store, ..raw.flags })))
}

fn help() -> String {
    let left = |flag: &Flag| {
        format!("--{}{}", flag.name, flag.value.map_or(String::new(), |value| format!("={value}")))
    };
    let width = FLAGS.iter().map(|flag| left(flag).len()).max().unwrap_or(0);
    let mut text = String::from("usage: twill daemon [flags]\n\n");
    for flag in FLAGS {
        let default =
            if flag.default.is_empty() { String::new() } else { format!(" (default {})", flag.default) };
        let _ = writeln!(text, "  {:width$}  {}{default}", left(flag), flag.help);
    }
    text
}

/// An empty value is none, as from an unset variable of a template.
fn some(value: String) -> Option<String> {
    (!value.is_empty()).then_some(value)
}

fn value_of<T: std::str::FromStr<Err: std::fmt::Display>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|error| format!("{value:?}: {error}"))
}

/// The kernel's own tables but for the main one are not for routes like ours (rtnetlink(7) `rtm_table`).
fn route_table(value: &str) -> Result<u32, String> {
    match (value, value.parse()) {
        ("main" | "254", _) => Ok(MAIN_TABLE),
        ("flannel", _) => Ok(FLANNEL_TABLE),
        (_, Ok(0 | 253 | 255)) => Err(format!("{value:?} is a table of the kernel's own: take another")),
        (_, Ok(number)) => Ok(number),
        (_, Err(_)) => Err(format!("{value:?} is neither main nor flannel nor a number")),
    }
}

/// Go's `strconv.ParseBool`.
fn boolean(value: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{value:?} is neither true nor false")),
    }
}

/// Go's `time.ParseDuration` for one number and unit: `90s`, `5m`, `1.5h`, `300ms`.
fn duration(value: &str) -> Result<Duration, String> {
    let bad = || format!("{value:?} is not a time such as 90s, 5m or 1h");
    let digits = value.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
    let number: f64 = value[..digits].parse().map_err(|_| bad())?;
    let seconds = match &value[digits..] {
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(bad()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon_flags(line: &str) -> Result<Flags, String> {
        let args: Vec<String> = line.split(' ').filter(|arg| !arg.is_empty()).map(Into::into).collect();
        match parse(&args)? {
            Command::Daemon(flags) => Ok(*flags),
            _ => Err("another command".into()),
        }
    }

    #[test]
    fn every_go_spelling_is_the_same_flag() {
        for line in
            ["--store=/s --iface=eth0", "-store /s -iface eth0", "-store=/s --iface eth0 stop --bogus"]
        {
            let flags = daemon_flags(line).unwrap();
            assert_eq!((flags.store, flags.iface), ("/s".into(), vec!["eth0".to_owned()]), "{line}");
        }
        assert!(daemon_flags("--store=/s --ip-masq").unwrap().ip_masq);
        assert!(!daemon_flags("--store=/s --ip-masq --ip-masq=F").unwrap().ip_masq);
        assert_eq!(daemon_flags("--store=/s --healthz-port=8081").unwrap().healthz_port, 8081);
        for (table, number) in [("main", 254), ("flannel", 8472), ("100", 100)] {
            let flags = daemon_flags(&format!("--store=/s --route-table={table}")).unwrap();
            assert_eq!(flags.route_table, number);
        }
    }

    #[test]
    fn lists_grow_and_single_values_are_replaced() {
        let flags = daemon_flags(
            "--store=/s --iface=b --iface-regex=x --iface= -iface a --iface-regex y --public-ipv6= --public-ip=192.0.2.1 \
             --public-ip=192.0.2.2 --iface-can-reach=192.0.2.3 --iface-can-reach 2001:db8::1",
        )
        .unwrap();
        assert_eq!(
            (flags.iface, flags.iface_regex),
            (vec!["b".into(), "a".into()], vec!["x".into(), "y".into()])
        );
        assert_eq!((flags.public_ip, flags.public_ipv6), (Some([192, 0, 2, 2].into()), None));
        assert_eq!(flags.iface_can_reach, Some("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn times_are_written_as_in_go() {
        for (text, seconds) in [("300ms", 0.3), ("90s", 90.0), ("5m", 300.0), ("1.5h", 5400.0)] {
            assert_eq!(duration(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
    }

    #[test]
    fn faults_name_the_flag() {
        for (line, word) in [
            ("", "--store"),
            ("--store", "DIR"),
            ("--store=/s --bogus", "--bogus"),
            ("--store=/s --ip-masq=maybe", "--ip-masq"),
            ("--store=/s --healthz-port=99999", "--healthz-port"),
            ("--store=/s --public-ip=fd00::1", "--public-ip: \"fd00::1\": invalid IPv4 address syntax"),
            (
                "--store=/s --public-ipv6=192.0.2.1",
                "--public-ipv6: \"192.0.2.1\": invalid IPv6 address syntax",
            ),
            ("--store=/s --iface-can-reach=gateway", "--iface-can-reach"),
            ("--store=/s --shrink-grace=5", "--shrink-grace"),
            ("--store=/s --shrink-grace=-5s", "--shrink-grace"),
            ("--store=/s --route-table=255", "--route-table"),
            ("--store=/s --route-table=local", "--route-table"),
        ] {
            assert!(daemon_flags(line).unwrap_err().contains(word), "{line}");
        }
    }

    #[test]
    fn help_lists_every_flag() {
        let help = help();
        assert!(
            FLAGS.iter().all(|flag| help.contains(&format!("--{}", flag.name)) && help.contains(flag.help))
        );
    }

    #[test]
    fn the_documents_list_every_flag_with_its_default_and_no_other() {
        let row = |flag: &Flag| {
            let value = flag.value.map_or("boolean".into(), |value| format!("`{value}`"));
            let default = if flag.default.is_empty() { "none".into() } else { format!("`{}`", flag.default) };
            [format!("`--{}`", flag.name), value, default]
        };
        let flags: Vec<_> = FLAGS.iter().map(row).collect();
        let listed = crate::flags::tests::documented("## Flags of `twill daemon`");
        let listed: Vec<_> =
            listed.iter().map(|row| [row[0].clone(), row[1].clone(), row[2].clone()]).collect();
        assert_eq!(listed, flags);
    }
}
