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
            "lease directory of this machine in place of etcd: DIR/config and DIR/subnets/",
            |flags| &mut flags.store),
        flag("backend-type", "TYPE", "",
            "vxlan, auto, host-gw or alloc, whatever the network config says; its options count where it is of that type",
            |flags| &mut flags.backend_type),
        flag("config-reload", "", "true",
            "follow changes of the network config; false reads it once, as flannel does",
            |flags| &mut flags.config_reload),
        flag("shrink-grace", "TIME", "5m",
            "keep peers so long when more than half of them vanish from the store at once",
            |flags| &mut flags.shrink_grace),
        flag("probe", "HOW", "periodic",
            "ask peers whether pods reach them: periodic, on-change (when a peer is new or changes) or off",
            |flags| &mut flags.probe),
    ] },
    Group { title: "interface, addresses and routes", lack: |_| None, flags: &[
        flag("iface", "NAME|IP", "",
            "interface for traffic between nodes; may be repeated, the first that is there is taken; without it the default route's",
            |flags| &mut flags.iface),
        flag("iface-regex", "REGEX", "",
            "the same by an expression that its address or name matches, after all --iface; may be repeated",
            |flags| &mut flags.iface_regex),
        flag("iface-can-reach", "IP", "",
            "the interface that the kernel would send through to this address, after all --iface-regex",
            |flags| &mut flags.iface_can_reach),
        flag("public-ip", "IP", "",
            "IPv4 address announced to other nodes; without it the interface's",
            |flags| &mut flags.public_ip),
        flag("public-ipv6", "IP", "",
            "IPv6 address announced to other nodes; without it the interface's",
            |flags| &mut flags.public_ipv6),
        flag("node-ip", "IP,IP", "",
            "what Kubernetes knows this node by, one address of each family; another choice than that is warned about",
            |flags| &mut flags.node_ips),
        flag("route-table", "TABLE", "main",
            "routing table of the pods' routes: main, flannel (8472) or a number; any but main gets a rule",
            |flags| &mut flags.route_table),
        flag("ip-blackhole-route", "", "false",
            "drop what is for a pod of this node that is not there",
            |flags| &mut flags.ip_blackhole_route),
        flag("set-sysctls", "", "true",
            "set what pods need of this node's sysctls; false tells it",
            |flags| &mut flags.set_sysctls),
    ] },
    Group { title: "files", lack: |_| None, flags: &[
        flag("subnet-file", "FILE", SUBNET_FILE,
            "where this node's subnet and MTU are written for the CNI plugin",
            |flags| &mut flags.subnet_file),
        flag("options-file", "FILE", OPTIONS_FILE,
            "more options, a variable in each line; empty reads none; beside another subnet file FILE it is FILE.options",
            |flags| &mut flags.options_file),
        flag("cache-dir", "DIR", CACHE_DIR,
            "where the last good leases are kept, for a reboot while the store is away; empty keeps none",
            |flags| &mut flags.cache_dir),
        flag("socket", "FILE", SOCKET,
            "unix socket that twill status and twill diff ask; beside another subnet file FILE it is FILE.sock",
            |flags| &mut flags.socket),
    ] },
    Group { title: "health and log", lack: |_| None, flags: &[
        flag("healthz-ip", "IP", "0.0.0.0",
            "address of the server of /healthz, /readyz and /metrics",
            |flags| &mut flags.healthz_ip),
        flag("healthz-port", "PORT", "0",
            "its port; 0 starts no server",
            |flags| &mut flags.healthz_port),
        flag("log-format", "text|json", "text",
            "how log lines look",
            |flags| &mut flags.log_format),
        flag("v", "LEVEL", "0",
            "how much is logged: 1 to 4 is debug, more is trace; RUST_LOG has the last word",
            |flags| &mut flags.verbosity),
        flag("vmodule", "LIST", "",
            "accepted and of no effect",
            |flags| &mut flags.vmodule),
        flag("log_backtrace_at", "FILE:LINE", "",
            "accepted and of no effect",
            |flags| &mut flags.log_backtrace_at),
        flag("version", "", "false",
            "print the version and exit",
            |flags| &mut flags.version),
    ] },
    Group { title: "rules for traffic", lack: |_| None, flags: &[
        flag("ip-masq", "", "false",
            "masquerade what leaves the pod network, and say so in the subnet file",
            |flags| &mut flags.ip_masq),
        flag("ip-masq-fully-random-disable", "", "false",
            "masquerade without fully random source ports",
            |flags| &mut flags.rules.ip_masq_fully_random_disable),
        flag("iptables-forward-rules", "", "true",
            "accept forwarded traffic from and to pods",
            |flags| &mut flags.rules.iptables_forward_rules),
        flag("iptables-resync", "SECONDS", "5",
            "so often at least the rules of iptables-legacy are looked at",
            |flags| &mut flags.rules.iptables_resync),
    ] },
    Group { title: "etcd", lack: |flags| (!flags.store.as_os_str().is_empty()).then_some("of no effect beside --store"), flags: &[
        flag("etcd-endpoints", "URLS", "http://127.0.0.1:4001,http://127.0.0.1:2379",
            "etcd servers, separated by commas",
            |flags| &mut flags.etcd.endpoints),
        flag("etcd-prefix", "PATH", "/coreos.com/network",
            "what all keys begin with",
            |flags| &mut flags.etcd.prefix),
        flag("etcd-keyfile", "FILE", "",
            "key of the client's certificate, PEM",
            |flags| &mut flags.etcd.keyfile),
        flag("etcd-certfile", "FILE", "",
            "the client's certificate, PEM",
            |flags| &mut flags.etcd.certfile),
        flag("etcd-cafile", "FILE", "",
            "certificates that the servers' are signed with, PEM",
            |flags| &mut flags.etcd.cafile),
        flag("etcd-username", "NAME", "",
            "user of etcd",
            |flags| &mut flags.etcd.username),
        flag("etcd-password", "PASSWORD", "",
            "the user's password; better given in the environment, where other users do not see it",
            |flags| &mut flags.etcd.password),
        flag("subnet-lease-renew-margin", "MINUTES", "60",
            "how long before its end the lease is renewed, 1 to 1439",
            |flags| &mut flags.etcd.subnet_lease_renew_margin),
    ] },
    Group { title: "Kubernetes", lack: |_| Some("this version does not know Kubernetes"), flags: &[
        flag("kube-subnet-mgr", "", "false",
            "take subnets from Kubernetes and not from etcd",
            |flags| &mut flags.kube.subnet_mgr),
        flag("kube-api-url", "URL", "",
            "the API server; without it what the kubeconfig or the pod's service account says",
            |flags| &mut flags.kube.api_url),
        flag("kubeconfig-file", "FILE", "",
            "kubeconfig",
            |flags| &mut flags.kube.kubeconfig_file),
        flag("kube-annotation-prefix", "PREFIX", "flannel.alpha.coreos.com",
            "what the names of a node's annotations begin with",
            |flags| &mut flags.kube.annotation_prefix),
        flag("net-config-path", "FILE", "/etc/kube-flannel/net-conf.json",
            "the network config",
            |flags| &mut flags.kube.net_config_path),
        flag("set-node-network-unavailable", "", "true",
            "tell Kubernetes when this node's network is there",
            |flags| &mut flags.kube.set_node_network_unavailable),
    ] },
];
