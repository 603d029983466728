//! Options of the daemon: the command line in Go's syntax, then the environment, then the options file
//! (flannel-compat 1). flannel's manifests and unit files work as they are. The options are parsed here and take effect
//! where they are used.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use plan::backend::Backend;
use plan::config::{Config, FirewallOptions, SysctlPolicy};
use plan::env_file;
use plan::netconf::NetConf;
use store::{Dir, Store};

use super::help::help;
use super::table::{self, Flag, GROUPS, PREFIX};
use super::value::{LogFormat, Secret};
use super::{Command, options_file_of, socket_of};
use crate::files;
use crate::probe::ProbeMode;

/// Options of the daemon, by flannel's names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags {
    pub(crate) store: PathBuf,
    /// Backend type in place of the network config's. The config's options count only if it names the same type.
    pub(crate) backend_type: Option<Backend>,
    pub(crate) config_reload: bool,
    /// Time for which peers are kept that vanish from the store together with most others.
    pub(crate) shrink_grace: Duration,
    pub(crate) probe: ProbeMode,
    pub(crate) iface: Vec<String>,
    pub(crate) iface_regex: Vec<String>,
    pub(crate) iface_can_reach: Option<IpAddr>,
    pub(crate) public_ip: Option<Ipv4Addr>,
    pub(crate) public_ipv6: Option<Ipv6Addr>,
    /// This node's InternalIPs in Kubernetes.
    pub(crate) node_ips: Vec<IpAddr>,
    /// Number of the routing table that our routes are in.
    pub(crate) route_table: u32,
    pub(crate) ip_blackhole_route: bool,
    pub(crate) set_sysctls: bool,
    pub(crate) subnet_file: PathBuf,
    pub(crate) options_file: PathBuf,
    /// Directory of the leases cache, which outlives a reboot; empty for no cache.
    pub(crate) cache_dir: PathBuf,
    pub(crate) socket: PathBuf,
    /// Address or host name for the server of `/healthz`.
    pub(crate) healthz_ip: String,
    /// Port of the server; 0 starts none.
    pub(crate) healthz_port: u16,
    pub(crate) log_format: LogFormat,
    pub(crate) verbosity: i64,
    pub(crate) vmodule: String,
    pub(crate) log_backtrace_at: String,
    pub(crate) version: bool,
    pub(crate) ip_masq: bool,
    pub(crate) rules: Rules,
    pub(crate) etcd: Etcd,
    pub(crate) kube: Kube,
    /// Source of each flag that was set.
    sources: BTreeMap<&'static str, Source>,
    /// Ignored parts of the environment, the options file and the command line, each with the reason.
    pub(crate) ignored: Vec<String>,
}

/// Options for traffic rules.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    pub(crate) ip_masq_fully_random_disable: bool,
    pub(crate) iptables_forward_rules: bool,
    /// Maximum time between two looks at the rules of iptables-legacy, seconds.
    pub(crate) iptables_resync: i64,
}

/// Options for etcd.
#[derive(Clone, Debug, Default)]
pub(crate) struct Etcd {
    pub(crate) endpoints: String,
    pub(crate) prefix: String,
    pub(crate) keyfile: PathBuf,
    pub(crate) certfile: PathBuf,
    pub(crate) cafile: PathBuf,
    pub(crate) username: String,
    pub(crate) password: Secret,
    /// Time before its end at which our lease is renewed, minutes.
    pub(crate) subnet_lease_renew_margin: i64,
}

impl Etcd {
    fn check(&self) -> Result<(), String> {
        if self.certfile.as_os_str().is_empty() != self.keyfile.as_os_str().is_empty() {
            return Err("--etcd-certfile and --etcd-keyfile go together: give both or none".into());
        }
        if self.urls().next().is_none() {
            return Err("--etcd-endpoints names no server: give one URL or more, separated by commas".into());
        }
        Ok(())
    }

    /// Returns the files that are read again for each connection.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        let all = [&self.keyfile, &self.certfile, &self.cafile];
        all.into_iter().map(PathBuf::as_path).filter(|file| !file.as_os_str().is_empty())
    }

    /// Reports whether a server is given by name rather than by address.
    pub(crate) fn names_hosts(&self) -> bool {
        let is_address = |url: &str| {
            let host = url.split_once("://").map_or(url, |(_, rest)| rest);
            let host = host.split('/').next().unwrap_or_default();
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            host.parse::<SocketAddr>().is_ok() || bare.parse::<IpAddr>().is_ok()
        };
        self.endpoints.split(',').any(|url| !url.is_empty() && !is_address(url))
    }

    /// Returns the URLs of the servers. A server without a scheme gets `https` if a CA or certificate file is given, else
    /// `http`.
    fn urls(&self) -> impl Iterator<Item = String> {
        let files = [&self.cafile, &self.certfile];
        let scheme = if files.iter().all(|file| file.as_os_str().is_empty()) { "http" } else { "https" };
        self.endpoints.split(',').filter(|url| !url.is_empty()).map(move |url| match url.split_once("://") {
            Some((scheme, rest)) => format!("{}://{rest}", scheme.to_lowercase()),
            None => format!("{scheme}://{url}"),
        })
    }
}

/// Options for Kubernetes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kube {
    pub(crate) subnet_mgr: bool,
    pub(crate) api_url: String,
    pub(crate) kubeconfig_file: PathBuf,
    pub(crate) annotation_prefix: String,
    pub(crate) net_config_path: PathBuf,
    pub(crate) set_node_network_unavailable: bool,
}

/// Source of an option, from the highest rank to the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    CommandLine,
    Environment,
    OptionsFile,
    /// Derived from the path of the subnet file, since the option was not given.
    SubnetFile,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CommandLine => "command line",
            Self::Environment => "environment",
            Self::OptionsFile => "options.env",
            Self::SubnetFile => "beside the subnet file",
        })
    }
}

/// Setting in the environment or the options file.
struct Setting {
    /// Place of the setting, for the person who has to correct it.
    place: String,
    variable: String,
    value: OsString,
}

/// Parses the arguments after the command; `variables` is the environment. The error is a message for the user.
pub(super) fn parse(
    program: &str,
    args: &[String],
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Command, String> {
    let mut flags = Flags::defaults()?;
    match flags.take_args(args) {
        Ok(true) => {}
        Ok(false) => return Ok(Command::Help(help(program))),
        Err(error) => return Err(format!("{error}\n{program} --help lists the flags")),
    }
    if flags.version {
        return Ok(Command::Version);
    }
    flags.take(Source::Environment, environment(variables));
    // The options file may name another subnet file, but too late to choose the options file.
    flags.set_default_path("options-file", options_file_of(&flags.subnet_file));
    let file = flags.read_options_file();
    flags.take(Source::OptionsFile, file);
    flags.set_default_path("socket", socket_of(&flags.subnet_file));
    Ok(Command::Daemon(Box::new(flags)))
}

impl Flags {
    /// Returns all flags at their defaults.
    fn defaults() -> Result<Self, String> {
        let mut flags = Self::default();
        for flag in table::flags().filter(|flag| !flag.default.is_empty()) {
            (flag.at)(&mut flags).set(flag.default).map_err(|error| format!("--{}: {error}", flag.name))?;
        }
        Ok(flags)
    }

    /// Sets the path of the socket or the options file beside the subnet file, unless it was given.
    fn set_default_path(&mut self, name: &'static str, path: PathBuf) {
        let slot = match name {
            "socket" => &mut self.socket,
            _ => &mut self.options_file,
        };
        if *slot != path && !self.sources.contains_key(name) {
            *slot = path;
            self.sources.insert(name, Source::SubnetFile);
        }
    }

    /// Parses arguments in Go's syntax (flannel-compat 1.1). Returns false if help was asked for.
    fn take_args(&mut self, args: &[String]) -> Result<bool, String> {
        let mut last = "the beginning";
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let name = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).unwrap_or_default();
            if name.is_empty() {
                let count = args.len() + usize::from(arg != "--");
                if count > 0 {
                    // The argument may be a secret, so it is not shown.
                    self.ignored.push(format!(
                        "{count} arguments after {last}, since no flag follows it (a switch takes its value after =)"
                    ));
                }
                break;
            }
            let (name, attached) =
                name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
            if ["h", "help"].contains(&name) {
                return Ok(false);
            }
            let flag = table::flags().find(|flag| flag.name == name);
            let flag = flag.ok_or_else(|| format!("there is no flag --{name}"))?;
            let slot = (flag.at)(self);
            let value = match attached {
                Some(value) => value,
                None if slot.is_switch() => "true",
                None => args.next().ok_or_else(|| format!("--{name} needs a value: {}", flag.value))?,
            };
            slot.set(value).map_err(|error| format!("--{name}: {error}"))?;
            self.sources.insert(flag.name, Source::CommandLine);
            last = arg.split('=').next().unwrap_or_default();
        }
        Ok(true)
    }

    /// Takes the settings of a source, except flags that a source of higher rank has set. The last of several lines
    /// counts.
    fn take(&mut self, source: Source, settings: Vec<Setting>) {
        let settings: BTreeMap<String, Setting> =
            settings.into_iter().map(|setting| (setting.variable.clone(), setting)).collect();
        for Setting { place, variable, value } in
            settings.into_values().filter(|setting| !setting.value.is_empty())
        {
            let Some(flag) = table::flags().find(|flag| flag.variable() == variable) else {
                self.ignored.push(format!("{place}: there is no such option"));
                continue;
            };
            if self.sources.contains_key(flag.name) {
                continue;
            }
            let text = value.to_str().ok_or_else(|| "it is not valid UTF-8".to_owned());
            match text.and_then(|text| (flag.at)(self).set(text)) {
                Ok(()) => _ = self.sources.insert(flag.name, source),
                Err(error) => self.ignored.push(format!("{place}: {error}")),
            }
        }
    }

    fn read_options_file(&mut self) -> Vec<Setting> {
        if self.options_file.as_os_str().is_empty() {
            return Vec::new();
        }
        let path = self.options_file.display();
        let text = match files::read_own(&self.options_file).and_then(files::text) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                self.ignored.push(format!("{path}: {error}"));
                return Vec::new();
            }
        };
        self.options_in(&text)
    }

    /// Returns the options that a text of an options file gives. Lines that give none are reported as ignored.
    fn options_in(&mut self, text: &str) -> Vec<Setting> {
        let path = self.options_file.display();
        let mut all = Vec::new();
        for line in env_file::parse(text) {
            let place = format!("{path}:{}", line.number);
            match line.assignment {
                Ok((variable, value)) => {
                    all.push(Setting {
                        place: format!("{place}: {variable}"),
                        variable,
                        value: value.into(),
                    });
                }
                Err(why) => self.ignored.push(format!("{place}: {why}")),
            }
        }
        all
    }

    /// Returns every flag in force with its source, secrets hidden: `v=0, iface=eth0 (command line)`.
    pub(crate) fn shown(&self) -> String {
        self.listed(|_| true)
    }

    /// Returns the flags whose value is not the default, in the same form.
    pub(crate) fn changed(&self) -> String {
        let (mut flags, mut defaults) = (self.clone(), Self::defaults().unwrap_or_default());
        let listed = self.listed(|flag| (flag.at)(&mut flags).show() != (flag.at)(&mut defaults).show());
        if listed.is_empty() { "every flag has its default".into() } else { listed }
    }

    fn listed(&self, mut is_listed: impl FnMut(&Flag) -> bool) -> String {
        let mut flags = self.clone();
        let show = |flag: &Flag| {
            let source = self.sources.get(flag.name).map_or(String::new(), |source| format!(" ({source})"));
            format!("{}={}{source}", flag.name, (flag.at)(&mut flags).show())
        };
        table::flags().filter(|flag| is_listed(flag)).map(show).collect::<Vec<_>>().join(", ")
    }

    /// Returns the flags that were given but have no effect in this version, each with the reason.
    pub(crate) fn without_effect(&self) -> Vec<String> {
        let mut flags = self.clone();
        let mut without_effect = Vec::new();
        for group in GROUPS {
            let Some(lack) = (group.lack)(self) else { continue };
            for flag in group.flags {
                let slot = (flag.at)(&mut flags);
                let off = slot.is_switch() && slot.show() == "false";
                if let Some(source) = self.sources.get(flag.name).filter(|_| !off) {
                    without_effect.push(format!("--{} ({source}): {lack}", flag.name));
                }
            }
        }
        without_effect
    }

    /// Checks the options as a whole. The error names the option that is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        let margin = self.etcd.subnet_lease_renew_margin;
        if !(1..=1439).contains(&margin) {
            return Err(format!("--subnet-lease-renew-margin is {margin}: it must be 1 to 1439 minutes"));
        }
        if self.store.as_os_str().is_empty() && self.kube.subnet_mgr {
            return Err("--kube-subnet-mgr: this version does not support Kubernetes; leases are in etcd, or in --store DIR".into());
        }
        if self.store.as_os_str().is_empty() {
            self.etcd.check()?;
        }
        if self.store.as_os_str().is_empty() && !cfg!(feature = "etcd") {
            return Err("no store: this build only has --store DIR, a lease directory of this machine".into());
        }
        Ok(())
    }

    /// Returns the store that holds the leases.
    pub(crate) fn store(&self) -> Store {
        #[cfg(feature = "etcd")]
        if self.store.as_os_str().is_empty() {
            return self.etcd_store();
        }
        Store::Dir(Dir::new(&self.store).with_backend(self.backend_type.clone()))
    }

    #[cfg(feature = "etcd")]
    fn etcd_store(&self) -> Store {
        let Etcd { prefix, keyfile, certfile, cafile, username, .. } = self.etcd.clone();
        Store::Etcd(store::Etcd::new(store::EtcdOptions {
            endpoints: self.etcd.urls().collect(),
            prefix,
            cafile,
            certfile,
            keyfile,
            username,
            password: self.etcd.password.reveal().to_owned(),
            backend: self.backend_type.clone(),
            renew_margin: Duration::from_secs(self.etcd.subnet_lease_renew_margin.cast_unsigned() * 60),
        }))
    }

    /// Returns the input of plans: that network config with our own options.
    pub(crate) fn config(&self, conf: &NetConf) -> Config {
        let firewall = FirewallOptions {
            nftables: conf.nftables,
            masquerade: self.ip_masq,
            forward: self.rules.iptables_forward_rules,
            fully_random: !self.rules.ip_masq_fully_random_disable,
        };
        let sysctls = if self.set_sysctls { SysctlPolicy::Set } else { SysctlPolicy::Report };
        let (table, blackhole) = (self.route_table, self.ip_blackhole_route);
        Config { table, firewall, sysctls, blackhole, ..conf.config() }
    }

    /// Returns the source of the backend's type: that of `--backend-type`, else `network config` or `default`.
    pub(crate) fn backend_source(&self, conf: &NetConf) -> String {
        match self.sources.get("backend-type").filter(|_| self.backend_type.is_some()) {
            Some(source) => source.to_string(),
            None if conf.names_backend => "network config".into(),
            None => "default".into(),
        }
    }
}

/// Returns the settings in the environment: all variables that begin with [`PREFIX`].
fn environment(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<Setting> {
    let named = variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let ours = named.filter(|(name, _)| name.starts_with(PREFIX));
    ours.map(|(variable, value)| Setting { place: format!("environment: {variable}"), variable, value })
        .collect()
}

/// Sets the flags that an options file of that text names, and shows them.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &str) {
    let Ok(mut flags) = Flags::defaults() else { return };
    let settings = flags.options_in(text);
    flags.take(Source::OptionsFile, settings);
    let _ = (flags.shown(), flags.changed(), flags.without_effect(), flags.check());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    /// Two values of each flag, as they are written and shown, and one that it rejects.
    const VALUES: &[(&str, &str, &str, Option<&str>)] = &[
        ("store", "/a", "/b", None),
        ("backend-type", "host-gw", "vxlan", Some("udp")),
        ("config-reload", "false", "true", Some("maybe")),
        ("shrink-grace", "90s", "300ms", Some("5")),
        ("probe", "off", "on-change", Some("no")),
        ("iface", "eth0", "192.0.2.1", None),
        ("iface-regex", "^eth", "10\\..*", None),
        ("iface-can-reach", "192.0.2.1", "2001:db8::1", Some("gateway")),
        ("public-ip", "192.0.2.1", "192.0.2.2", Some("2001:db8::1")),
        ("public-ipv6", "2001:db8::1", "2001:db8::2", Some("192.0.2.1")),
        ("node-ip", "192.0.2.1,2001:db8::1", "2001:db8::2", Some("192.0.2.1,192.0.2.2")),
        ("route-table", "8472", "main", Some("local")),
        ("ip-blackhole-route", "true", "false", Some("on")),
        ("set-sysctls", "false", "true", Some("no")),
        ("subnet-file", "/a", "/b", None),
        ("options-file", "/a", "/b", None),
        ("cache-dir", "/a", "/b", None),
        ("socket", "/a", "/b", None),
        ("healthz-ip", "127.0.0.1", "localhost", None),
        ("healthz-port", "8081", "8082", Some("65536")),
        ("log-format", "json", "text", Some("xml")),
        ("v", "4", "-1", Some("much")),
        ("vmodule", "kube=2", "etcd=3", None),
        ("log_backtrace_at", "main.go:1", "main.go:2", None),
        ("version", "false", "false", Some("v1")),
        ("ip-masq", "true", "false", Some("yes")),
        ("ip-masq-fully-random-disable", "true", "false", Some("yes")),
        ("iptables-forward-rules", "false", "true", Some("")),
        ("iptables-resync", "7", "-8", Some("5s")),
        ("etcd-endpoints", "http://a:1,http://b:2", "https://c:3", None),
        ("etcd-prefix", "/a", "/b", None),
        ("etcd-keyfile", "/a", "/b", None),
        ("etcd-certfile", "/a", "/b", None),
        ("etcd-cafile", "/a", "/b", None),
        ("etcd-username", "root", "flannel", None),
        ("etcd-password", "***", "***", None),
        ("subnet-lease-renew-margin", "1", "1439", Some("60m")),
        ("kube-subnet-mgr", "true", "false", Some("TrUe")),
        ("kube-api-url", "https://a", "https://b", None),
        ("kubeconfig-file", "/a", "/b", None),
        ("kube-annotation-prefix", "a.b", "c.d/e", None),
        ("net-config-path", "/a", "/b", None),
        ("set-node-network-unavailable", "false", "true", Some("2")),
    ];

    /// flannel's flags and their defaults (flannel-compat 1.3).
    const FLANNEL: &[(&str, &str)] = &[
        ("etcd-endpoints", "http://127.0.0.1:4001,http://127.0.0.1:2379"),
        ("etcd-prefix", "/coreos.com/network"),
        ("etcd-keyfile", ""),
        ("etcd-certfile", ""),
        ("etcd-cafile", ""),
        ("etcd-username", ""),
        ("etcd-password", ""),
        ("iface", ""),
        ("iface-regex", ""),
        ("iface-can-reach", ""),
        ("subnet-file", "/run/flannel/subnet.env"),
        ("public-ip", ""),
        ("public-ipv6", ""),
        ("subnet-lease-renew-margin", "60"),
        ("ip-masq", "false"),
        ("ip-masq-fully-random-disable", "false"),
        ("kube-subnet-mgr", "false"),
        ("kube-api-url", ""),
        ("kubeconfig-file", ""),
        ("kube-annotation-prefix", "flannel.alpha.coreos.com"),
        ("net-config-path", "/etc/kube-flannel/net-conf.json"),
        ("set-node-network-unavailable", "true"),
        ("version", "false"),
        ("healthz-ip", "0.0.0.0"),
        ("healthz-port", "0"),
        ("iptables-resync", "5"),
        ("iptables-forward-rules", "true"),
        ("ip-blackhole-route", "false"),
        ("v", "0"),
        ("vmodule", ""),
        ("log_backtrace_at", ""),
    ];

    const LISTS: [&str; 2] = ["iface", "iface-regex"];

    /// Parses these arguments, this environment, and an options file with these lines.
    fn parsed(args: &[&str], environment: &[(&str, &str)], file: &str) -> Result<Flags, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("options.env");
        fs::write(&path, file).unwrap();
        let own = ["--options-file", path.to_str().unwrap()];
        let args: Vec<String> = own.iter().chain(args).map(ToString::to_string).collect();
        let variables = environment.iter().map(|(name, value)| (name.into(), value.into()));
        match parse("twill daemon", &args, variables)? {
            Command::Daemon(flags) => Ok(*flags),
            Command::Help(_) => Err("help".into()),
            Command::Version => Err("version".into()),
            _ => unreachable!(),
        }
    }

    fn asked(args: &[&str]) -> Flags {
        parsed(args, &[], "").unwrap_or_else(|error| panic!("{args:?}: {error}"))
    }

    fn find(name: &str) -> &'static Flag {
        table::flags().find(|flag| flag.name == name).unwrap_or_else(|| panic!("no flag {name}"))
    }

    fn value(flags: &Flags, name: &str) -> String {
        (find(name).at)(&mut flags.clone()).show()
    }

    fn is_switch(name: &str) -> bool {
        (find(name).at)(&mut Flags::default()).is_switch()
    }

    fn default(name: &str) -> String {
        if name == "shrink-grace" { "300s".into() } else { find(name).default.into() }
    }

    /// Returns all rows but that of `options-file`, which would decide what is read.
    fn values()
    -> impl Iterator<Item = &'static (&'static str, &'static str, &'static str, Option<&'static str>)> {
        VALUES.iter().filter(|(name, ..)| *name != "options-file")
    }

    #[test]
    fn servers_given_by_name_are_recognised() {
        let names = |endpoints: &str| Etcd { endpoints: endpoints.into(), ..Etcd::default() }.names_hosts();
        assert!(!names("http://127.0.0.1:4001,https://[fd00::1]:2379/,10.0.0.1,http://[::1]"));
        for name in ["http://etcd:2379", "10.0.0.1,etcd-1.example", "https://10.0.0.1.example/"] {
            assert!(names(name), "{name}");
        }
    }

    #[test]
    fn the_test_values_cover_every_flag() {
        let tried: Vec<&str> = VALUES.iter().map(|(name, ..)| *name).collect();
        let mut named: Vec<&str> = table::flags().map(|flag| flag.name).collect();
        named.sort_by_key(|name| tried.iter().position(|tried| tried == name));
        assert_eq!(tried, named);
    }

    #[test]
    fn flannels_flags_have_flannels_defaults_also_in_the_help() {
        let (flags, help) = (asked(&[]), help("flanneld"));
        let words: Vec<&str> = help.split_whitespace().collect();
        for (name, default) in FLANNEL {
            assert_eq!(value(&flags, name), *default, "{name}");
            assert_eq!(is_switch(name), find(name).value.is_empty(), "{name}");
            let spelled = format!("--{name}");
            let at = words.iter().position(|word| word.split('=').next() == Some(&spelled)).unwrap();
            let next = words[at + 1..]
                .iter()
                .position(|word| word.starts_with("--"))
                .unwrap_or(words.len() - at - 1);
            let said = words[at..=at + next].join(" ");
            assert!(default.is_empty() || said.contains(&format!("(default {default})")), "{said}");
        }
        for flag in table::flags() {
            assert!(help.contains(&format!("  --{}", flag.name)), "{}", flag.name);
            assert!(
                help.split_whitespace().collect::<Vec<_>>().join(" ").contains(flag.help),
                "{}",
                flag.name
            );
        }
        let longest = help.lines().map(|line| line.chars().count()).max();
        assert!(longest <= Some(100), "{longest:?}");
    }

    #[test]
    fn the_documents_list_every_flag_with_its_default_and_no_other() {
        let row = |flag: &Flag| {
            let value = if flag.value.is_empty() { "boolean".into() } else { format!("`{}`", flag.value) };
            let default = if flag.default.is_empty() { "none".into() } else { format!("`{}`", flag.default) };
            [format!("`--{}`", flag.name), value, default]
        };
        let flags: Vec<_> = table::flags().map(row).collect();
        let listed = crate::flags::tests::documented("## Flags of `twill daemon`");
        let listed: Vec<_> =
            listed.iter().map(|row| [row[0].clone(), row[1].clone(), row[2].clone()]).collect();
        assert_eq!(listed, flags);
    }

    #[test]
    fn every_go_spelling_of_a_flag_is_accepted() {
        for (name, one, two, _) in values() {
            for dashes in ["-", "--"] {
                let bare = format!("{dashes}{name}");
                for text in [one, two] {
                    let attached = asked(&[&format!("{bare}={text}")]);
                    assert_eq!(value(&attached, name), *text, "{bare}");
                    assert_eq!(attached.sources[name], Source::CommandLine);
                    // The socket is named after the subnet file.
                    let follows = |other: &str| *name == "subnet-file" && other == "socket";
                    for (other, ..) in values().filter(|(other, ..)| other != name && !follows(other)) {
                        assert_eq!(value(&attached, other), default(other), "{other}, when {bare} is set");
                    }
                    if !is_switch(name) {
                        assert_eq!(value(&asked(&[&bare, text]), name), *text, "{bare}");
                    }
                }
                if is_switch(name) && *name != "version" {
                    let flags = asked(&[&bare, "false"]);
                    assert_eq!((value(&flags, name), flags.ignored.len()), ("true".into(), 1), "{bare}");
                } else if !is_switch(name) {
                    assert!(parsed(&[&bare], &[], "").is_err_and(|error| error.contains(name)), "{bare}");
                }
            }
            let twice = asked(&[&format!("-{name}={one}"), &format!("--{name}={two}")]);
            let expected = if LISTS.contains(name) { format!("{one} {two}") } else { (*two).into() };
            assert_eq!(value(&twice, name), expected);
        }
    }

    #[test]
    fn every_flag_can_be_set_by_environment_or_options_file() {
        for (name, one, two, _) in values().filter(|(name, ..)| *name != "version") {
            let variable = find(name).variable();
            assert_eq!(variable, format!("FLANNELD_{}", name.to_uppercase().replace('-', "_")));
            let three = if is_switch(name) { one } else { &default(name)[..] };
            let args = [&*format!("--{name}={one}")];
            let (by_environment, by_file) = ([(&*variable, *two)], format!("{variable}=\"{two}\"\n"));
            let (nothing, empty) = ([(&*variable, "")], format!("{variable}=\n"));
            let other_file = format!("export {variable}='{three}' # other\n");
            for (flags, expected, source) in [
                (parsed(&[], &nothing, &empty), &*default(name), None),
                (parsed(&[], &by_environment, ""), *two, Some(Source::Environment)),
                (parsed(&[], &nothing, &by_file), *two, Some(Source::OptionsFile)),
                (parsed(&[], &[], &format!("{other_file}{by_file}")), *two, Some(Source::OptionsFile)),
                (parsed(&[], &by_environment, &other_file), *two, Some(Source::Environment)),
                (parsed(&args, &by_environment, &other_file), *one, Some(Source::CommandLine)),
                (parsed(&args, &[], &by_file), *one, Some(Source::CommandLine)),
            ] {
                let flags = flags.unwrap();
                let got = (&*value(&flags, name), flags.sources.get(name).copied());
                assert_eq!(got, (expected, source), "{name}");
                assert_eq!(flags.ignored, Vec::<String>::new());
            }
        }
    }

    #[test]
    fn a_bad_value_is_fatal_only_on_the_command_line() {
        for (name, one, _, bad) in VALUES {
            let Some(bad) = bad else { continue };
            let error = parsed(&[&format!("--{name}={bad}")], &[], "").unwrap_err();
            assert!(error.starts_with(&format!("--{name}: ")), "{error}");
            assert!(error.ends_with("\ntwill daemon --help lists the flags"), "{error}");
            if bad.is_empty() || *name == "version" {
                continue;
            }
            let variable = find(name).variable();
            let file = format!("# nothing\n{variable}={bad}\n");
            let flags = parsed(&[], &[(&variable, bad)], &file).unwrap();
            assert_eq!(value(&flags, name), default(name), "{name}");
            assert_eq!(flags.sources.get(name), None);
            let [environment, line] = &flags.ignored[..] else { panic!("{:?}", flags.ignored) };
            assert!(environment.starts_with(&format!("environment: {variable}: ")), "{environment}");
            assert!(line.contains(&format!("/options.env:2: {variable}: ")), "{line}");
            // A setting that is ignored does not hide a valid one below it.
            let flags = parsed(&[], &[(&variable, bad)], &format!("{variable}={one}")).unwrap();
            assert_eq!(value(&flags, name), *one, "{name}");
        }
    }

    #[test]
    fn flags_end_at_the_first_other_word_and_the_rest_is_counted() {
        for (line, words) in [
            ("--store=/s stop --bogus", 2),
            ("--store=/s -- --bogus", 1),
            ("--store=/s --", 0),
            ("--store=/s - --bogus", 2),
        ] {
            let flags = asked(&line.split(' ').collect::<Vec<_>>());
            assert_eq!(flags.store, Path::new("/s"));
            let said = flags.ignored.join("");
            assert_eq!(
                said.contains(&format!("{words} arguments after --store,")),
                words > 0,
                "{line}: {said}"
            );
            assert!(!said.contains("stop") && !said.contains("bogus"), "it may be a secret: {said}");
        }
        assert_eq!(asked(&["", "--bogus"]).ignored.len(), 1);
        for line in ["---v=1", "--=1", "-=1", "--bogus", "-bogus=1", "--v", "--IFACE=eth0"] {
            assert!(parsed(&[line], &[], "").unwrap_err().contains("--help"), "{line}");
        }
        for line in ["-h", "--h", "-help", "--help"] {
            assert_eq!(parsed(&["--iface=eth0", line], &[], "").unwrap_err(), "help");
        }
        assert_eq!(parsed(&["--version", "--v=1"], &[], "").unwrap_err(), "version");
        assert!(parsed(&["--version", "--bogus"], &[], "").unwrap_err().contains("bogus"));
        assert!(parsed(&["--version=F"], &[("FLANNELD_VERSION", "true")], "").is_ok());
    }

    #[test]
    fn the_options_file_is_read_from_its_flag_and_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("there"), "FLANNELD_V=3\nFLANNELD_BOGUS=1\nhunter2\nSHELL=hunter2\n").unwrap();
        let with = |args: &[String], file: &str| {
            let variables = [("FLANNELD_OPTIONS_FILE".into(), file.into())];
            match parse("twill daemon", args, variables.into_iter()) {
                Ok(Command::Daemon(flags)) => *flags,
                _ => panic!(),
            }
        };
        let flags = with(&[], &path("there"));
        assert_eq!(flags.verbosity, 3);
        let there = path("there");
        assert_eq!(
            flags.ignored,
            [
                format!("{there}:3: it is not of the form NAME=value"),
                format!("{there}:2: FLANNELD_BOGUS: there is no such option"),
                format!("{there}:4: SHELL: there is no such option"),
            ]
        );
        assert_eq!(with(&["--options-file=".into()], &path("there")).verbosity, 0);
        assert_eq!(with(&[], &path("missing")).ignored, Vec::<String>::new());
        std::os::unix::fs::symlink(path("there"), path("link")).unwrap();
        let linked = with(&[], &path("link"));
        assert_eq!((linked.verbosity, linked.ignored.len()), (0, 1), "{:?}", linked.ignored);
        let unreadable = with(&[], dir.path().to_str().unwrap());
        assert!(unreadable.ignored[0].contains(dir.path().to_str().unwrap()), "{:?}", unreadable.ignored);
    }

    #[test]
    fn an_unknown_variable_is_reported_if_it_has_our_prefix() {
        use std::os::unix::ffi::OsStringExt;
        let flags =
            parsed(&[], &[("FLANNELD_BACKENDTYPE", "hunter2"), ("HOME", "/"), ("FLANNEL_V", "1")], "");
        assert_eq!(flags.unwrap().ignored, ["environment: FLANNELD_BACKENDTYPE: there is no such option"]);
        let binary = OsString::from_vec(vec![0xff]);
        let variables = [("FLANNELD_IFACE".into(), binary.clone()), (binary, "x".into())];
        let Ok(Command::Daemon(flags)) =
            parse("twill daemon", &["--options-file=".into()], variables.into_iter())
        else {
            panic!()
        };
        assert_eq!(flags.ignored, ["environment: FLANNELD_IFACE: it is not valid UTF-8"]);
    }

    /// The first line of the log lists exactly the flags that differ from their defaults.
    #[test]
    fn the_changed_flags_are_listed_with_their_sources() {
        let defaults = |args: &[&str]| {
            let args: Vec<String> = [&["--options-file=/run/flannel/options.env"], args]
                .concat()
                .iter()
                .map(ToString::to_string)
                .collect();
            match parse("twill daemon", &args, std::iter::empty()) {
                Ok(Command::Daemon(flags)) => flags.changed(),
                _ => panic!("{args:?}"),
            }
        };
        assert_eq!(defaults(&[]), "every flag has its default");
        assert_eq!(
            defaults(&["--v=0", "--ip-masq=false", "--shrink-grace=300s"]),
            "every flag has its default"
        );
        assert_eq!(defaults(&["--iface=eth0", "--v=1"]), "iface=eth0 (command line), v=1 (command line)");
        assert_eq!(
            defaults(&["--subnet-file=/b"]),
            "subnet-file=/b (command line), socket=/b.sock (beside the subnet file)"
        );
        for (name, one, two, _) in values().filter(|(name, ..)| *name != "version") {
            for value in [one, two].into_iter().filter(|value| **value != default(name)) {
                let flags = parsed(&[], &[(&find(name).variable(), *value)], "").unwrap();
                let text = flags.changed();
                let shown = format!("{name}={} (environment)", self::value(&flags, name));
                assert!(text.split(", ").any(|part| part == shown), "{shown}: {text}");
                let others = if *name == "subnet-file" { 3 } else { 2 };
                assert_eq!(
                    text.split(", ").count(),
                    others,
                    "with options-file, and with the socket: {text}"
                );
                assert!(flags.shown().split(", ").count() >= table::flags().count(), "all at debug");
            }
        }
    }

    /// The options file is that of the daemon which is started, never that of another daemon of the node.
    #[test]
    fn options_file_and_socket_follow_the_subnet_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("b.env.options"), "FLANNELD_V=3\n").unwrap();
        fs::write(path("c.env.options"), format!("FLANNELD_SUBNET_FILE={}\nFLANNELD_V=4\n", path("d.env")))
            .unwrap();
        let with = |args: &[String], variables: &[(&str, String)]| {
            let variables = variables.iter().map(|(name, value)| ((*name).into(), value.into()));
            match parse("twill daemon", args, variables) {
                Ok(Command::Daemon(flags)) => *flags,
                _ => panic!("{args:?}"),
            }
        };
        let (b, c) = (format!("--subnet-file={}", path("b.env")), format!("--subnet-file={}", path("c.env")));
        let in_environment = [("FLANNELD_SUBNET_FILE", path("b.env"))];
        for flags in [with(std::slice::from_ref(&b), &[]), with(&[], &in_environment)] {
            assert_eq!((flags.verbosity, flags.socket.display().to_string()), (3, path("b.env.sock")));
            assert_eq!(flags.options_file.display().to_string(), path("b.env.options"));
        }
        // The subnet file that an options file names moves the socket, but no second options file is read.
        let flags = with(&[c], &[]);
        assert_eq!(
            (flags.verbosity, flags.socket.display().to_string()),
            (4, path("c.env.sock")),
            "the command line goes before"
        );
        let options = format!("--options-file={}", path("c.env.options"));
        let flags = with(&[options], &[]);
        assert_eq!((flags.verbosity, flags.socket.display().to_string()), (4, path("d.env.sock")));
        let flags = with(&[b.clone(), "--options-file=".into(), "--socket=/s".into()], &[]);
        assert_eq!((flags.verbosity, &*flags.socket), (0, Path::new("/s")));
        let flags = with(&[b], &[("FLANNELD_SOCKET", "/s".into()), ("FLANNELD_OPTIONS_FILE", "/o".into())]);
        assert_eq!(
            (flags.verbosity, &*flags.socket, &*flags.options_file),
            (0, Path::new("/s"), Path::new("/o"))
        );
    }

    #[test]
    fn flags_never_reveal_a_password() {
        let by_line = format!("{}=hunter2\n", find("etcd-password").variable());
        for flags in [
            asked(&["--etcd-password=hunter2"]),
            parsed(&[], &[("FLANNELD_ETCD_PASSWORD", "hunter2")], "").unwrap(),
            parsed(&[], &[], &by_line).unwrap(),
        ] {
            let place = flags.store().identity();
            let all = format!(
                "{} {} {:?} {:?} {flags:?} {place}",
                flags.shown(),
                flags.changed(),
                flags.without_effect(),
                flags.ignored
            );
            assert!(!all.contains("hunter2") && flags.shown().contains("etcd-password=***"), "{all}");
        }
    }

    #[test]
    fn flags_without_effect_are_reported_a_line_each() {
        assert_eq!(asked(&["--store=/s", "--v=4", "--iface=eth0"]).without_effect(), Vec::<String>::new());
        let etcd = asked(&["--etcd-prefix=/a"]);
        assert_eq!(etcd.without_effect(), Vec::<String>::new());
        let beside = asked(&["--store=/s"]);
        let lacking = |group: &&table::Group| (group.lack)(&beside).is_some();
        for flag in GROUPS.iter().filter(lacking).flat_map(|group| group.flags) {
            let (_, one, two, _) = VALUES.iter().find(|(name, ..)| *name == flag.name).unwrap();
            let wish = if is_switch(flag.name) { "true" } else { one };
            let said = parsed(&["--store=/s"], &[(&flag.variable(), wish)], "").unwrap().without_effect();
            assert!(
                said.len() == 1 && said[0].starts_with(&format!("--{} (environment): ", flag.name)),
                "{said:?}"
            );
            if is_switch(flag.name) {
                assert!([*one, *two].contains(&"false"));
                let said = asked(&["--store=/s", &format!("--{}=0", flag.name)]).without_effect();
                assert_eq!(said, Vec::<String>::new(), "off is what there is");
            }
        }
    }

    #[test]
    fn contradicting_options_are_reported() {
        for (args, word) in [
            (&["--store=/s"][..], None),
            (&["--store=/s", "--etcd-prefix=/x"], None),
            (&[], None),
            (&["--kube-subnet-mgr"], Some("--store DIR")),
            (&["--etcd-endpoints=http://a:1"], None),
            (&["--store=/s", "--kube-subnet-mgr"], None),
            (&["--store=/s", "--subnet-lease-renew-margin=1"], None),
            (&["--store=/s", "--subnet-lease-renew-margin=1439"], None),
            (&["--store=/s", "--subnet-lease-renew-margin=0"], Some("1439")),
            (&["--store=/s", "--subnet-lease-renew-margin=1440"], Some("1439")),
        ] {
            match (asked(args).check(), word) {
                (Ok(()), None) => {}
                (Err(error), Some(word)) => assert!(error.contains(word), "{error}"),
                (other, _) => panic!("{args:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_source_of_the_backend_is_known() {
        let named = NetConf::parse(br#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap();
        let silent = NetConf::parse(br#"{"Network":"10.3.0.0/16"}"#).unwrap();
        let variable = [("FLANNELD_BACKEND_TYPE", "alloc")];
        for (flags, expected) in [
            (asked(&["--backend-type=HOST-GW"]), "command line"),
            (parsed(&[], &variable, "FLANNELD_BACKEND_TYPE=vxlan").unwrap(), "environment"),
            (parsed(&[], &[], "FLANNELD_BACKEND_TYPE=vxlan").unwrap(), "options.env"),
            (asked(&[]), "network config"),
            (parsed(&["--backend-type="], &variable, "").unwrap(), "network config"),
        ] {
            assert_eq!(flags.backend_source(&named), expected);
        }
        assert_eq!(asked(&[]).backend_source(&silent), "default");
    }
}
