//! The packet filter of a namespace as others use it: iptables of both variants, nft, and a 1:1 NAT of a router. It
//! looks and sets with those tools only, and judges nothing.

use std::net::IpAddr;

use crate::ns::Ns;

/// One of the two things that answer to the name `iptables`.
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

    /// iptables and ip6tables.
    pub fn programs(self) -> [String; 2] {
        ["iptables", "ip6tables"].map(|program| format!("{program}-{}", self.suffix()))
    }

    /// The same arguments for both families, such as `-P FORWARD DROP`.
    pub fn run(self, ns: &Ns, arguments: &str) {
        for program in self.programs() {
            ns.run(&format!("{program} -w {arguments}"));
        }
    }

    /// What `iptables-save` and `ip6tables-save` print, without their remarks and counters.
    pub fn saved(self, ns: &Ns) -> [String; 2] {
        self.programs().map(|program| {
            let text = ns.run(&format!("{program}-save"));
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(|line| line.split(" [").next().unwrap_or_default().to_owned() + "\n").collect()
        })
    }
}

/// What `nft list ruleset` prints.
pub fn nft_ruleset(ns: &Ns) -> String {
    ns.run("nft list ruleset")
}

/// A 1:1 NAT in `router`: who is at `inside` behind it is at `outside` for everybody before its device `device`.
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
