//! The packet filter of a namespace as other programs use it: both variants of iptables, nft, and 1:1 NAT. It reads
//! and sets with those tools only.

use std::net::IpAddr;

use crate::ns::Ns;

/// Variant of the program `iptables`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iptables {
    Nft,
    Legacy,
}

impl Iptables {
    pub const BOTH: [Self; 2] = [Self::Nft, Self::Legacy];

    fn suffix(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    /// Returns the names of iptables and ip6tables, such as `iptables-nft` and `ip6tables-nft`.
    pub fn programs(self) -> [String; 2] {
        ["iptables", "ip6tables"].map(|program| format!("{program}-{}", self.suffix()))
    }

    /// Runs iptables and ip6tables with the same arguments, such as `-P FORWARD DROP`.
    pub fn run(self, ns: &Ns, arguments: &str) {
        for program in self.programs() {
            ns.run(&format!("{program} -w {arguments}"));
        }
    }

    /// Returns the output of `iptables-save` and `ip6tables-save`, without comments and counters.
    pub fn saved(self, ns: &Ns) -> [String; 2] {
        self.programs().map(|program| {
            let text = ns.run(&format!("{program}-save"));
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(|line| line.split(" [").next().unwrap_or_default().to_owned() + "\n").collect()
        })
    }
}

/// Returns the output of `nft list ruleset`.
pub fn nft_ruleset(ns: &Ns) -> String {
    ns.run("nft list ruleset")
}

/// Sets up a 1:1 NAT in `router`. On the side of `device`, the host at `inside` appears at `outside`.
pub fn nat_one_to_one(router: &Ns, device: &str, inside: IpAddr, outside: IpAddr) {
    let (family, length) = if inside.is_ipv4() { ("ip", 32) } else { ("ip6", 128) };
    router.run(&format!(
        "ip address add {outside}/{length} dev {device}
         nft 'table {family} one-to-one {{
             chain in {{ type nat hook prerouting priority dstnat; {family} daddr {outside} dnat to {inside}; }}
             chain out {{ type nat hook postrouting priority srcnat; oifname {device} {family} saddr {inside} snat to {outside}; }}
         }}'"
    ));
}
