//! Table of the daemon's flags, one row each. Command line, environment, options file, help and tests use this table
//! alone.

use super::daemon::Flags;
use super::value::Value;
use super::{CACHE_DIR, OPTIONS_FILE, SOCKET, SUBNET_FILE};

/// Flag of the daemon.
pub(super) struct Flag {
    pub(super) name: &'static str,
    /// Placeholder for the value in the help; empty for a switch.
    pub(super) value: &'static str,
    pub(super) default: &'static str,
    pub(super) help: &'static str,
    /// Gives access to the flag's value.
    pub(super) at: fn(&mut Flags) -> &mut dyn Value,
}

/// Flags that belong together.
pub(super) struct Group {
    pub(super) title: &'static str,
    /// Reason why the flags of this group have no effect; `None` if they have one.
    pub(super) lack: fn(&Flags) -> Option<&'static str>,
    pub(super) flags: &'static [Flag],
}

const fn flag(
    name: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
    at: fn(&mut Flags) -> &mut dyn Value,
) -> Flag {
    Flag { name, value, default, help, at }
}

impl Flag {
    /// Returns the flag's variable for the environment and the options file, such as `FLANNELD_ETCD_PREFIX`.
    pub(super) fn variable(&self) -> String {
        format!("{PREFIX}{}", self.name.to_uppercase().replace('-', "_"))
    }
}

/// Prefix of all variables.
pub(super) const PREFIX: &str = "FLANNELD_";

/// Returns every flag, in the order of the help.
pub(super) fn flags() -> impl Iterator<Item = &'static Flag> {
    GROUPS.iter().flat_map(|group| group.flags)
}

/// All flags, in groups, in the order of the help.
#[rustfmt::skip] // a table
pub(super) const GROUPS: &[Group] = &[
    Group { title: "leases and network config", lack: |_| None, flags: &[
        flag("store", "DIR", "",
            "lease directory on this machine, used instead of etcd: DIR/config and DIR/subnets/",
            |flags| &mut flags.store),
        flag("backend-type", "TYPE", "",
            "backend of this node: vxlan, auto, host-gw or alloc; overrides the type in the network config",
            |flags| &mut flags.backend_type),
        flag("config-reload", "", "true",
            "follow changes of the network config; with false, read it at start and on SIGHUP only",
            |flags| &mut flags.config_reload),
        flag("shrink-grace", "TIME", "5m",
            "how long to keep peers when more than half of them vanish from the store at once",
            |flags| &mut flags.shrink_grace),
        flag("probe", "HOW", "periodic",
            "when to probe peers: periodic, on-change (when a peer is new or changes) or off",
            |flags| &mut flags.probe),
    ] },
    Group { title: "interface, addresses and routes", lack: |_| None, flags: &[
        flag("iface", "NAME|IP", "",
            "uplink for traffic between nodes; may be repeated, the first that exists is used; without it, the default route's",
            |flags| &mut flags.iface),
        flag("iface-regex", "REGEX", "",
            "uplink by a regular expression for its address or name; may be repeated, tried after every --iface",
            |flags| &mut flags.iface_regex),
        flag("iface-can-reach", "IP", "",
            "uplink by the kernel's route to this address; tried after every --iface-regex",
            |flags| &mut flags.iface_can_reach),
        flag("public-ip", "IP", "",
            "IPv4 address announced to other nodes; without it, the uplink's",
            |flags| &mut flags.public_ip),
        flag("public-ipv6", "IP", "",
            "IPv6 address announced to other nodes; without it, the uplink's",
            |flags| &mut flags.public_ipv6),
        flag("node-ip", "IP,IP", "",
            "InternalIPs of this node in Kubernetes, at most one per family; warn if the uplink's address differs",
            |flags| &mut flags.node_ips),
        flag("route-table", "TABLE", "main",
            "routing table of the pods' routes: main, flannel (8472) or a number; a table other than main gets policy rules",
            |flags| &mut flags.route_table),
        flag("ip-blackhole-route", "", "false",
            "drop packets to addresses of this node's subnet that no pod has",
            |flags| &mut flags.ip_blackhole_route),
        flag("set-sysctls", "", "true",
            "set the sysctls that pods need; with false, only report them",
            |flags| &mut flags.set_sysctls),
    ] },
    Group { title: "files", lack: |_| None, flags: &[
        flag("subnet-file", "FILE", SUBNET_FILE,
            "file with this node's subnet and MTU, written for the CNI plugin",
            |flags| &mut flags.subnet_file),
        flag("options-file", "FILE", OPTIONS_FILE,
            "file with more options, one variable per line; empty for none; with another subnet file FILE, FILE.options",
            |flags| &mut flags.options_file),
        flag("cache-dir", "DIR", CACHE_DIR,
            "directory of the leases cache, for a start while the store is unavailable; empty for no cache",
            |flags| &mut flags.cache_dir),
        flag("socket", "FILE", SOCKET,
            "unix socket for twill status and twill diff; with another subnet file FILE, FILE.sock",
            |flags| &mut flags.socket),
    ] },
    Group { title: "health and log", lack: |_| None, flags: &[
        flag("healthz-ip", "IP", "0.0.0.0",
            "address of the server of /healthz, /readyz and /metrics",
            |flags| &mut flags.healthz_ip),
        flag("healthz-port", "PORT", "0",
            "port of the server of /healthz, /readyz and /metrics; 0 starts no server",
            |flags| &mut flags.healthz_port),
        flag("log-format", "text|json", "text",
            "format of log lines",
            |flags| &mut flags.log_format),
        flag("v", "LEVEL", "0",
            "log verbosity: 1 to 4 is debug, 5 or more is trace; RUST_LOG overrides it",
            |flags| &mut flags.verbosity),
        flag("vmodule", "LIST", "",
            "accepted for compatibility; has no effect",
            |flags| &mut flags.vmodule),
        flag("log_backtrace_at", "FILE:LINE", "",
            "accepted for compatibility; has no effect",
            |flags| &mut flags.log_backtrace_at),
        flag("version", "", "false",
            "print the version and exit",
            |flags| &mut flags.version),
    ] },
    Group { title: "traffic rules", lack: |_| None, flags: &[
        flag("ip-masq", "", "false",
            "masquerade traffic that leaves the pod network, and write FLANNEL_IPMASQ to the subnet file",
            |flags| &mut flags.ip_masq),
        flag("ip-masq-fully-random-disable", "", "false",
            "masquerade without fully random source ports",
            |flags| &mut flags.rules.ip_masq_fully_random_disable),
        flag("iptables-forward-rules", "", "true",
            "accept forwarded traffic from and to pods",
            |flags| &mut flags.rules.iptables_forward_rules),
        flag("iptables-resync", "SECONDS", "5",
            "maximum time between two reads of the rules of iptables-legacy; below 30 counts as 30",
            |flags| &mut flags.rules.iptables_resync),
    ] },
    Group { title: "etcd", lack: |flags| (!flags.store.as_os_str().is_empty()).then_some("not used with --store"), flags: &[
        flag("etcd-endpoints", "URLS", "http://127.0.0.1:4001,http://127.0.0.1:2379",
            "etcd servers, separated by commas",
            |flags| &mut flags.etcd.endpoints),
        flag("etcd-prefix", "PATH", "/coreos.com/network",
            "prefix of all keys in etcd",
            |flags| &mut flags.etcd.prefix),
        flag("etcd-keyfile", "FILE", "",
            "private key of the client certificate, PEM",
            |flags| &mut flags.etcd.keyfile),
        flag("etcd-certfile", "FILE", "",
            "client certificate, PEM",
            |flags| &mut flags.etcd.certfile),
        flag("etcd-cafile", "FILE", "",
            "CA certificates for the servers, PEM; without it, the system's",
            |flags| &mut flags.etcd.cafile),
        flag("etcd-username", "NAME", "",
            "etcd user",
            |flags| &mut flags.etcd.username),
        flag("etcd-password", "PASSWORD", "",
            "password of the etcd user; other users can see it on the command line, but not in the environment",
            |flags| &mut flags.etcd.password),
        flag("subnet-lease-renew-margin", "MINUTES", "60",
            "minimum time that the etcd lease has left when it is renewed, 1 to 1439 minutes",
            |flags| &mut flags.etcd.subnet_lease_renew_margin),
    ] },
    Group { title: "Kubernetes", lack: |_| Some("this version does not support Kubernetes"), flags: &[
        flag("kube-subnet-mgr", "", "false",
            "use Kubernetes as the store instead of etcd",
            |flags| &mut flags.kube.subnet_mgr),
        flag("kube-api-url", "URL", "",
            "API server; without it, that of the kubeconfig or of the pod's service account",
            |flags| &mut flags.kube.api_url),
        flag("kubeconfig-file", "FILE", "",
            "path of the kubeconfig",
            |flags| &mut flags.kube.kubeconfig_file),
        flag("kube-annotation-prefix", "PREFIX", "flannel.alpha.coreos.com",
            "prefix of the node annotations' names",
            |flags| &mut flags.kube.annotation_prefix),
        flag("net-config-path", "FILE", "/etc/kube-flannel/net-conf.json",
            "path of the network config",
            |flags| &mut flags.kube.net_config_path),
        flag("set-node-network-unavailable", "", "true",
            "set the node condition NetworkUnavailable to false once this node's network is up",
            |flags| &mut flags.kube.set_node_network_unavailable),
    ] },
];
