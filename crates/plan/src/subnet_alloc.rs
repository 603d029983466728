//! Chooses the subnet that a node leases: its former one if possible, else a random free one (flannel-compat 2.2,
//! 4.5). The caller supplies the random number; `store` takes the lease.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::family::Family;
use crate::lease::Lease;
use crate::mac::Mac;
use crate::netconf::NetConf;
use crate::node::Uplink;
use crate::pool::{Pool, Refusal};
use crate::subnet::Subnet;

/// Relation of a lease's subnet to a network config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LengthMatch {
    /// Subnet with the config's families and lengths. It may lie outside the pool, whose bounds may have changed.
    Own,
    /// Subnet of the same network that another `SubnetLen` or other families lease, as while nodes change one after the
    /// other.
    Other,
}

/// Returns how a subnet is related to a config. The error says why no config of these networks leases it.
pub fn length_match(conf: &NetConf, subnet: &Subnet) -> Result<LengthMatch, &'static str> {
    let has_its_length = |family| match (conf.pool(family), subnet.of(family)) {
        (Some(pool), Some(net)) => net.prefix_len() == pool.len && pool.refuses(&net).is_none(),
        (pool, net) => pool.is_none() && net.is_none(),
    };
    if Family::ALL.into_iter().all(has_its_length) {
        return Ok(LengthMatch::Own);
    }
    let mut refusals = Family::ALL
        .into_iter()
        .filter_map(|family| Some(conf.pool(family)?.refuses(&subnet.of(family)?)))
        .peekable();
    let first = refusals.peek().copied().flatten();
    match first {
        Some(refusal) if refusals.all(|refusal| refusal.is_some()) => Err(match refusal {
            Refusal::Misaligned => "its subnet has host bits set",
            Refusal::Outside => "its subnet lies outside our network",
            Refusal::Length => "no SubnetLen gives a subnet of that length",
        }),
        _ => Ok(LengthMatch::Other),
    }
}

/// Returns the part of a subnet that a config of these networks leases. The rest belongs to no node, and takes nothing
/// from any node.
pub fn valid_part(conf: &NetConf, subnet: &Subnet) -> Subnet {
    let is_credible = |family, net: IpNet| conf.pool(family).is_none_or(|pool| pool.refuses(&net).is_none());
    Subnet {
        ipv4: subnet.ipv4.filter(|net| is_credible(Family::Ipv4, IpNet::V4(*net))),
        ipv6: subnet.ipv6.filter(|net| is_credible(Family::Ipv6, IpNet::V6(*net))),
    }
}

/// Subnets to lease, and what to do for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetChoice {
    pub subnet: Subnet,
    /// Leases of ours to be deleted: they no longer fit the network config, or overlap an older lease.
    pub stale: Vec<Subnet>,
    pub origin: Origin,
}

/// Origin of the chosen subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Our lease in the store.
    Reused,
    /// Subnet file of an earlier run, whose subnet no other node has.
    Previous,
    Drawn,
}

/// Node that asks for a lease.
#[derive(Clone, Debug, Default)]
pub struct Requester {
    pub public_ip: Option<Ipv4Addr>,
    pub public_ipv6: Option<Ipv6Addr>,
    /// Subnets in the subnet file of an earlier run.
    pub previous: Option<Subnet>,
    /// Lease that this node last wrote, perhaps under an address that it has lost since.
    pub held: Option<Lease>,
    /// VTEP devices that exist here: the address of each, which is its subnet's first, and its MAC.
    pub vteps: Vec<(IpAddr, Mac)>,
    /// True if no other machine of the uplink's segment answers for our address. Another node's lease with that address
    /// is then a dead one.
    pub alone: bool,
}

impl Requester {
    /// Returns a requester that is reached by that uplink.
    pub fn at(uplink: &Uplink) -> Self {
        let (public_ip, public_ipv6) = (uplink.public_ip.or(uplink.ipv4), uplink.public_ipv6.or(uplink.ipv6));
        Self { public_ip, public_ipv6, ..Self::default() }
    }

    /// Returns true if the lease is this node's. A node is known by its public IPv4 address, or without one by its
    /// public IPv6 address. Under an address that it has lost, only the very lease that it wrote is its own. Another
    /// node may have the address by now. Its lease stays its own if another writer overwrites it. A VTEP device that
    /// exists here with the lease's subnet and MAC shows that it wrote it.
    pub fn owns(&self, lease: &Lease) -> bool {
        let place = |lease: &Lease| (lease.subnet, lease.public_ip, lease.public_ipv6);
        // The present holder of that address may have taken the lease over with it, as flannel does. Then the MAC
        // differs.
        let other_mac = |held: &Lease| {
            let mut pairs = held.announced.macs().into_iter().zip(lease.announced.macs());
            pairs.any(|(held, listed)| held.zip(listed).is_some_and(|(held, listed)| held != listed))
        };
        let is_held = |held: &Lease| place(held) == place(lease) && !other_mac(held);
        self.is_at_our_address(lease)
            || self.held.as_ref().is_some_and(is_held)
            || self.is_overwritten(lease)
            || self.has_vtep_of(lease)
    }

    /// Returns true if another writer has put a foreign address into our lease, neither our present nor our former one.
    /// An entry that is not younger than our last write is still the one that we wrote: a node that takes a free subnet
    /// makes a younger entry. The holder of our former address may take our lease over with it, as flannel does.
    pub fn is_overwritten(&self, lease: &Lease) -> bool {
        let address = |lease: &Lease| (lease.public_ip.map(IpAddr::V4)).or(lease.public_ipv6.map(IpAddr::V6));
        !self.is_at_our_address(lease)
            && self.held.as_ref().is_some_and(|held| {
                lease.subnet == held.subnet
                    && (1..=held.written).contains(&lease.born)
                    && address(lease) != address(held)
            })
    }

    /// Returns true if a VTEP device has the first address of the lease's subnet and the lease's MAC.
    fn has_vtep_of(&self, lease: &Lease) -> bool {
        let mut parts = Family::ALL.into_iter().zip(lease.announced.macs());
        parts.any(|(family, mac)| {
            let vtep = lease.subnet.of(family).map(|subnet| subnet.network()).zip(mac);
            vtep.is_some_and(|vtep| self.vteps.contains(&vtep))
        })
    }

    /// Returns true if the lease is this node's and not that of another machine which had our address before.
    pub fn wrote(&self, conf: &NetConf, lease: &Lease) -> bool {
        self.owns(lease) && !self.belongs_to_another(conf, lease)
    }

    fn is_at_our_address(&self, lease: &Lease) -> bool {
        match self.public_ip {
            Some(address) => lease.public_ip == Some(address),
            None => self.public_ipv6.is_some() && lease.public_ipv6 == self.public_ipv6,
        }
    }

    /// Returns true if another machine has certainly written the lease. Only a machine that has run in this network can
    /// know it: neither the subnet nor the MAC is its own.
    fn belongs_to_another(&self, conf: &NetConf, lease: &Lease) -> bool {
        let mut is_strange = false;
        let held_macs = self.held.as_ref().map_or([None; 2], |held| held.announced.macs());
        for ((family, mac), held_mac) in Family::ALL.into_iter().zip(lease.announced.macs()).zip(held_macs) {
            let (Some(pool), Some(subnet), Some(mac)) = (conf.pool(family), lease.subnet.of(family), mac)
            else {
                continue;
            };
            let held =
                self.held.as_ref().and_then(|held| Some((held.subnet.of(family)?.network(), held_mac?)));
            let own = self.vteps.iter().copied().chain(held);
            for (first, own_mac) in own.filter(|(first, _)| pool.network.contains(first)) {
                if first == subnet.network() || own_mac == mac {
                    return false;
                }
                is_strange = true;
            }
        }
        is_strange && self.previous != Some(lease.subnet)
    }
}

/// Returns another node's lease under the address that we would announce from now on. A machine without memory gets
/// none: the lease under its address may be its own. It may have written that lease before a reboot or a new
/// installation, or flannel may have written it there. So the machine takes the lease over with its MAC. Two such
/// machines share a subnet as with flannel (flannel-faults 11): nothing in the store tells them apart. A node gets
/// none, too, if its own lease has the address already. The same holds if no other machine answers for it.
pub fn same_address_lease<'a>(
    conf: &NetConf,
    leases: &'a [Lease],
    requester: &Requester,
    chosen: &SubnetChoice,
) -> Option<&'a Lease> {
    let at_our_address = || leases.iter().filter(|lease| requester.is_at_our_address(lease));
    let is_known =
        |lease: &&Lease| lease.subnet == chosen.subnet && !requester.belongs_to_another(conf, lease);
    if requester.alone || at_our_address().any(|lease| is_known(&lease)) {
        return None;
    }
    at_our_address().find(|lease| requester.belongs_to_another(conf, lease))
}

/// Chooses the subnets of a node. It is an error if the pool is used up.
pub fn choose(
    conf: &NetConf,
    leases: &[Lease],
    requester: &Requester,
    dice: u64,
) -> Result<SubnetChoice, String> {
    let owns = |lease: &Lease| requester.wrote(conf, lease);
    let valid_part = |lease: &Lease| match owns(lease) {
        true => lease.clone(),
        false => Lease { subnet: valid_part(conf, &lease.subnet), ..lease.clone() },
    };
    let leases: Vec<Lease> = leases.iter().map(valid_part).collect();
    let mut own: Vec<&Lease> = leases.iter().filter(|lease| owns(lease)).collect();
    // Pods run in the subnet that we hold, or in the one of the subnet file. Leases of an earlier or a later holder
    // of our address matter less.
    let is_held = |lease: &Lease| requester.held.as_ref().is_some_and(|held| held.subnet == lease.subnet);
    let is_previous = |lease: &Lease| requester.previous == Some(lease.subnet);
    own.sort_unstable_by_key(|lease| (!is_held(lease), !is_previous(lease), lease.born, lease.subnet));
    // Of two leases that overlap the older one stays, so ours gives way to an older one. A lease that had to be written
    // again is as old as before.
    let age = |own: &Lease| match &requester.held {
        Some(held) if held.subnet == own.subnet && held.born > 0 => held.born.min(own.born),
        _ => own.born,
    };
    let usurped = |own: &Lease| {
        let mut older = leases.iter().filter(|other| !owns(other) && other.born < age(own));
        older.any(|other| overlap(&own.subnet, &other.subnet))
    };
    let fitting = own.iter().position(|lease| fits(conf, &lease.subnet) && !usurped(lease));
    if let Some(at) = fitting {
        let subnet = own.remove(at).subnet;
        return Ok(SubnetChoice { subnet, stale: Vec::new(), origin: Origin::Reused });
    }
    let stale: Vec<Subnet> = own.iter().map(|lease| lease.subnet).collect();
    let others = || leases.iter().filter(|lease| !owns(lease));
    if let Some(subnet) = requester.previous.filter(|subnet| fits(conf, subnet) && is_free(subnet, others()))
    {
        return Ok(SubnetChoice { subnet, stale, origin: Origin::Previous });
    }
    let draw = |family: Family| match conf.pool(family) {
        None => Ok(None),
        Some(pool) => {
            let taken = || others().filter_map(|lease| lease.subnet.of(family));
            // Pods run in this family's subnet, whatever became of the other family.
            let had = own.iter().map(|lease| lease.subnet).chain(requester.previous);
            let mut kept = had.filter_map(|subnet| subnet.of(family)).filter(|net| pool.holds(net));
            kept.find(|net| !taken().any(|other| nets_overlap(net, &other)))
                .or_else(|| pool.draw(taken(), dice))
                .map(Some)
                .ok_or_else(|| out_of_subnets(pool, taken()))
        }
    };
    let (mut subnet, v4, v6) = (Subnet::default(), draw(Family::Ipv4)?, draw(Family::Ipv6)?);
    for net in [v4, v6].into_iter().flatten() {
        match net {
            IpNet::V4(net) => subnet.ipv4 = Some(net),
            IpNet::V6(net) => subnet.ipv6 = Some(net),
        }
    }
    Ok(SubnetChoice { subnet, stale, origin: Origin::Drawn })
}

fn out_of_subnets(pool: &Pool, taken: impl Iterator<Item = IpNet>) -> String {
    let mut text = format!("out of subnets: every one of {pool} is leased");
    let sizes = taken.filter_map(|net| pool.span(&net).map(|(first, last)| (last - first + 1, net)));
    if let Some((size, net)) = sizes.max().filter(|(size, _)| *size > 1) {
        text += &format!("; the lease of {net} alone takes {size} of them: delete it if it is no node's");
    }
    text
}

/// Returns true if the subnet has exactly the families of the config, each within its pool.
pub fn fits(conf: &NetConf, subnet: &Subnet) -> bool {
    Family::ALL.into_iter().all(|family| match (conf.pool(family), subnet.of(family)) {
        (Some(pool), Some(net)) => pool.holds(&net),
        (None, None) => true,
        _ => false,
    })
}

fn is_free<'a>(subnet: &Subnet, mut others: impl Iterator<Item = &'a Lease>) -> bool {
    !others.any(|other| overlap(subnet, &other.subnet))
}

fn nets_overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// Returns true if both share an address.
pub fn overlap(one: &Subnet, other: &Subnet) -> bool {
    Family::ALL.into_iter().any(|family| match (one.of(family), other.of(family)) {
        (Some(a), Some(b)) => nets_overlap(&a, &b),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Announced;
    use crate::backend::vxlan::Vtep;

    fn conf(text: &str) -> NetConf {
        NetConf::parse(text.as_bytes()).unwrap()
    }

    fn lease(key: &str, public_ip: [u8; 4]) -> Lease {
        let subnet = Subnet::parse(key).unwrap();
        Lease {
            born: 0,
            written: 0,
            subnet,
            public_ip: Some(public_ip.into()),
            public_ipv6: None,
            announced: Announced::Nothing,
        }
    }

    fn requester(previous: Option<&str>) -> Requester {
        let previous = previous.map(|key| Subnet::parse(key).unwrap());
        Requester { public_ip: Some([192, 0, 2, 1].into()), previous, ..Requester::default() }
    }

    #[test]
    fn a_node_with_a_new_address_keeps_only_its_own_subnet() {
        let conf = conf(r#"{"Network":"10.3.0.0/16"}"#);
        let (held, left) = (lease("10.3.7.0-24", [192, 0, 2, 9]), lease("10.3.5.0-24", [192, 0, 2, 1]));
        let moved = Requester { held: Some(held.clone()), ..requester(Some("10.3.7.0-24")) };
        for leases in [vec![held.clone()], vec![held.clone(), left]] {
            let choice = choose(&conf, &leases, &moved, 0).unwrap();
            assert_eq!((choice.subnet, choice.origin), (held.subnet, Origin::Reused));
        }
        // The present holder of our old address has a lease of its own, or has taken ours.
        let next = lease("10.3.8.0-24", [192, 0, 2, 9]);
        assert!(!moved.owns(&next));
        let theirs = Lease { public_ip: Some([192, 0, 2, 77].into()), ..held.clone() };
        assert_eq!(choose(&conf, &[theirs], &moved, 0).unwrap().origin, Origin::Drawn);
        let with = |mac: u8| {
            let vtep = Vtep { vni: Some(1), port: None, mac: Mac([2, 0, 0, 0, 0, mac]) };
            Lease { announced: Announced::Vxlan { ipv4: Some(vtep), ipv6: None }, ..held.clone() }
        };
        let moved = Requester { held: Some(with(1)), ..moved };
        assert!(moved.owns(&with(1)) && moved.owns(&held) && !moved.owns(&with(2)));
    }

    #[test]
    fn an_overwritten_lease_is_ours_and_a_younger_one_in_our_subnet_is_not() {
        let conf = conf(r#"{"Network":"10.3.0.0/16"}"#);
        let held = Lease { born: 5, written: 8, ..lease("10.3.7.0-24", [192, 0, 2, 1]) };
        let requester = Requester { held: Some(held.clone()), ..requester(Some("10.3.7.0-24")) };
        let theirs = |born, host| Lease { born, public_ip: Some([192, 0, 2, host].into()), ..held.clone() };
        for (lease, is_ours) in [(theirs(5, 77), true), (theirs(8, 77), true), (theirs(9, 77), false)] {
            let choice = choose(&conf, std::slice::from_ref(&lease), &requester, 0).unwrap();
            assert_eq!(
                (choice.subnet == held.subnet, requester.owns(&lease)),
                (is_ours, is_ours),
                "{lease:?}"
            );
        }
        assert!(requester.is_overwritten(&theirs(5, 77)) && !requester.is_overwritten(&theirs(5, 1)));
        // This node was at .9 before, and the next holder of that address has taken the lease over with another MAC.
        let vtep = |last| Some(Vtep { vni: Some(1), port: None, mac: Mac([2, 0, 0, 0, 0, last]) });
        let with = |lease: Lease, last| Lease {
            announced: Announced::Vxlan { ipv4: vtep(last), ipv6: None },
            ..lease
        };
        let moved = Requester { held: Some(with(theirs(5, 9), 1)), ..requester };
        assert!(moved.owns(&with(theirs(5, 9), 1)) && !moved.owns(&with(theirs(5, 9), 2)));
    }

    #[test]
    fn a_node_without_memory_knows_its_lease_by_the_subnet_and_the_mac_of_its_vtep() {
        let conf = conf(r#"{"Network":"10.3.0.0/16"}"#);
        let mac = |last: u8| Mac([2, 0, 0, 0, 0, last]);
        let vtep = Vtep { vni: Some(1), port: None, mac: mac(9) };
        let announced = Announced::Vxlan { ipv4: Some(vtep), ipv6: None };
        let left = Lease { announced, ..lease("10.3.9.0-24", [192, 0, 2, 11]) };
        for (vtep, origin) in [
            (("10.3.9.0", 9), Origin::Reused),
            // Another machine has taken the lease over, or the device is of another subnet.
            (("10.3.9.0", 8), Origin::Drawn),
            (("10.3.8.0", 9), Origin::Drawn),
        ] {
            let vteps = vec![(vtep.0.parse().unwrap(), mac(vtep.1))];
            let moved = Requester { vteps, ..requester(Some("10.3.9.0-24")) };
            let choice = choose(&conf, std::slice::from_ref(&left), &moved, 0).unwrap();
            assert_eq!(choice.origin, origin, "{vtep:?}");
        }
    }

    #[test]
    fn a_foreign_lease_under_our_address_is_recognised_by_subnet_and_mac() {
        let conf = conf(r#"{"Network":"10.3.0.0/16"}"#);
        let mac = |last: u8| Mac([2, 0, 0, 0, 0, last]);
        let vxlan = |key: &str, address: u8, last: u8| {
            let vtep = Vtep { vni: Some(1), port: None, mac: mac(last) };
            let announced = Announced::Vxlan { ipv4: Some(vtep), ipv6: None };
            Lease { announced, ..lease(key, [192, 0, 2, address]) }
        };
        let device = |first: &str, last: u8| vec![(first.parse().unwrap(), mac(last))];
        let theirs = vxlan("10.3.7.0-24", 1, 7);
        let nobody = requester(None);
        let ran = Requester { vteps: device("10.3.9.0", 9), ..requester(Some("10.3.9.0-24")) };
        let held = Requester { held: Some(vxlan("10.3.9.0-24", 9, 9)), ..requester(None) };
        for (case, leases, requester, expected) in [
            ("no memory: first start, reboot, new installation", vec![theirs.clone()], &nobody, false),
            ("it ran as another", vec![theirs.clone()], &ran, true),
            ("it ran as another, before a reboot", vec![theirs.clone()], &held, true),
            (
                "and its lease under the old address stands",
                vec![theirs.clone(), vxlan("10.3.9.0-24", 9, 9)],
                &held,
                true,
            ),
            ("no subnet file", vec![theirs.clone()], &Requester { previous: None, ..ran.clone() }, true),
            (
                "the subnet file names it",
                vec![theirs.clone()],
                &Requester { previous: Some(theirs.subnet), ..ran.clone() },
                false,
            ),
            (
                "our MAC: moved by hand",
                vec![theirs.clone()],
                &Requester { vteps: device("10.3.9.0", 7), ..nobody.clone() },
                false,
            ),
            (
                "our subnet: flannel has drawn another MAC",
                vec![theirs.clone()],
                &Requester { vteps: device("10.3.7.0", 9), ..nobody.clone() },
                false,
            ),
            (
                "a device of another network",
                vec![theirs.clone()],
                &Requester { vteps: device("10.4.9.0", 9), ..nobody.clone() },
                false,
            ),
            ("no MAC: another backend", vec![lease("10.3.7.0-24", [192, 0, 2, 1])], &ran, false),
            ("under another address", vec![vxlan("10.3.7.0-24", 2, 7)], &ran, false),
            (
                "it announces the address already",
                vec![theirs.clone(), vxlan("10.3.9.0-24", 1, 9)],
                &ran,
                false,
            ),
        ] {
            let choice = choose(&conf, &leases, requester, 0).unwrap();
            let found = same_address_lease(&conf, &leases, requester, &choice).map(|lease| lease.subnet);
            assert_eq!(found, expected.then_some(theirs.subnet), "{case}");
        }
    }

    #[test]
    fn a_node_takes_no_dead_lease_with_its_new_address_in_place_of_its_own() {
        let conf = conf(r#"{"Network":"10.3.0.0/16"}"#);
        let vxlan = |key: &str, address: u8, last: u8| {
            let vtep = Vtep { vni: Some(1), port: None, mac: Mac([2, 0, 0, 0, 0, last]) };
            let announced = Announced::Vxlan { ipv4: Some(vtep), ipv6: None };
            Lease { announced, ..lease(key, [192, 0, 2, address]) }
        };
        let (dead, own) = (vxlan("10.3.7.0-24", 1, 7), vxlan("10.3.9.0-24", 9, 9));
        let moved = Requester { held: Some(own.clone()), alone: true, ..requester(Some("10.3.9.0-24")) };
        assert!(moved.owns(&dead) && !moved.wrote(&conf, &dead) && moved.wrote(&conf, &own));
        for (leases, origin) in
            [(vec![dead.clone(), own.clone()], Origin::Reused), (vec![dead.clone()], Origin::Previous)]
        {
            let choice = choose(&conf, &leases, &moved, 0).unwrap();
            assert_eq!(same_address_lease(&conf, &leases, &moved, &choice), None);
            let unsure = Requester { alone: false, ..moved.clone() };
            assert_eq!(same_address_lease(&conf, &leases, &unsure, &choice), Some(&dead));
            assert_eq!((choice.subnet, choice.stale, choice.origin), (own.subnet, vec![], origin));
        }
    }

    #[test]
    fn our_lease_is_reused_or_replaced_if_it_no_longer_fits() {
        let conf = conf(r#"{"Network":"10.3.0.0/16"}"#);
        let leases = [lease("10.3.7.0-24", [192, 0, 2, 1]), lease("10.9.7.0-24", [192, 0, 2, 1])];
        let choice = choose(&conf, &leases, &requester(None), 0).unwrap();
        assert_eq!((choice.subnet, choice.origin), (leases[0].subnet, Origin::Reused));
        let choice = choose(&conf, &leases[1..], &requester(Some("10.3.9.0-24")), 0).unwrap();
        assert_eq!(choice.stale, [leases[1].subnet]);
        assert_eq!((choice.subnet.to_string().as_str(), choice.origin), ("10.3.9.0-24", Origin::Previous));
    }

    #[test]
    fn with_several_own_leases_the_previous_or_oldest_is_kept() {
        let conf = conf(r#"{"Network":"10.3.0.0/16"}"#);
        let aged = |key: &str, born| Lease { born, ..lease(key, [192, 0, 2, 1]) };
        let leases = [aged("10.3.1.0-24", 3), aged("10.3.7.0-24", 1), aged("10.3.9.0-24", 2)];
        for (previous, expected) in [(Some("10.3.9.0-24"), 2), (Some("10.3.8.0-24"), 1), (None, 1)] {
            let choice = choose(&conf, &leases, &requester(previous), 0).unwrap();
            assert_eq!(
                (choice.subnet, choice.origin),
                (leases[expected].subnet, Origin::Reused),
                "{previous:?}"
            );
        }
    }

    #[test]
    fn our_lease_yields_to_an_older_overlapping_lease() {
        let conf = conf(r#"{"Network":"10.3.0.0/16"}"#);
        let (mut ours, theirs) = (lease("10.3.7.0-24", [192, 0, 2, 1]), lease("10.3.7.0-25", [192, 0, 2, 2]));
        assert_eq!(
            choose(&conf, &[ours.clone(), theirs.clone()], &requester(None), 0).unwrap().origin,
            Origin::Reused
        );
        ours.born = 9;
        let theirs = Lease { born: 5, ..theirs };
        let choice = choose(&conf, &[ours.clone(), theirs.clone()], &requester(None), 0).unwrap();
        assert_eq!((choice.stale, choice.origin), (vec![ours.subnet], Origin::Drawn));
        // Somebody has deleted our lease and written the other one, and we have written ours again.
        let remembered = Requester { held: Some(Lease { born: 2, ..ours.clone() }), ..requester(None) };
        let choice = choose(&conf, &[ours.clone(), theirs], &remembered, 0).unwrap();
        assert_eq!((choice.subnet, choice.origin), (ours.subnet, Origin::Reused));
    }

    #[test]
    fn adding_a_family_keeps_the_subnet_of_the_other() {
        let conf = conf(r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:3::/48"}"#);
        let ours = lease("10.3.7.0-24", [192, 0, 2, 1]);
        let other = lease("10.3.9.0-24", [192, 0, 2, 2]);
        for (leases, previous, kept) in [
            (vec![ours.clone(), other.clone()], None, Some("10.3.7.0/24")),
            (vec![other.clone()], Some("10.3.7.0-24"), Some("10.3.7.0/24")),
            (vec![other], Some("10.3.9.0-24"), None),
        ] {
            let choice = choose(&conf, &leases, &requester(previous), 5).unwrap();
            let subnet = choice.subnet.ipv4.unwrap().to_string();
            assert!(kept.map_or(subnet != "10.3.9.0/24", |kept| subnet == kept), "{subnet}");
            assert!(choice.subnet.ipv6.is_some() && choice.origin == Origin::Drawn);
        }
    }

    /// A lease takes its subnet from us even if only its valid part equals ours. A test of laws found this case:
    /// without its invalid part the other lease looked like ours.
    #[test]
    fn a_partly_invalid_lease_still_takes_an_equal_subnet() {
        let conf = conf(
            r#"{"EnableIPv6":true,"Network":"10.3.0.0/16","IPv6Network":"fd00:3::/48","IPv6SubnetLen":64}"#,
        );
        let ours = lease("10.3.0.0-18", [192, 0, 2, 1]);
        let theirs = lease("10.3.0.0-18&fd00:9::-64", [192, 0, 2, 9]);
        let choice = choose(&conf, &[ours.clone(), theirs.clone()], &requester(None), 0).unwrap();
        assert_eq!(choice.stale, [ours.subnet]);
        assert!(!theirs.subnet.ipv4.unwrap().contains(&choice.subnet.ipv4.unwrap()), "{}", choice.subnet);
    }

    #[test]
    fn a_previous_subnet_leased_by_a_peer_is_not_taken() {
        let conf = conf(r#"{"Network":"10.3.0.0/16"}"#);
        let leases = [lease("10.3.9.0-24", [192, 0, 2, 2])];
        for dice in 0..500 {
            let choice = choose(&conf, &leases, &requester(Some("10.3.9.0-24")), dice).unwrap();
            assert_eq!(choice.origin, Origin::Drawn);
            assert_ne!(choice.subnet, leases[0].subnet);
        }
    }

    #[test]
    fn every_free_subnet_is_drawn_and_no_other() {
        let conf = conf(r#"{"Network":"10.3.0.0/28","SubnetLen":30}"#);
        let leases = [lease("10.3.0.8-30", [192, 0, 2, 2])];
        let drawn: std::collections::BTreeSet<String> = (0..9)
            .map(|dice| choose(&conf, &leases, &requester(None), dice).unwrap().subnet.to_string())
            .collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), ["10.3.0.12-30", "10.3.0.4-30"]);
        let all = ["10.3.0.0-30", "10.3.0.4-30", "10.3.0.8-30", "10.3.0.12-30"];
        let all = all.map(|key| lease(key, [192, 0, 2, 2]));
        assert!(choose(&conf, &all, &requester(None), 7).unwrap_err().contains("out of subnets"));
    }

    #[test]
    fn a_lease_that_no_node_can_hold_takes_no_subnet() {
        let conf = conf(r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#);
        let pool = conf.pool(Family::Ipv4).unwrap().count();
        for key in [
            "10.244.0.0-16",
            "10.244.0.0-17",
            "10.0.0.0-8",
            "10.244.0.0-16&fd00::-48",
            "0.0.0.0-0&fd00::-32",
            "10.244.9.0-32",
            "10.244.0.7-17",
        ] {
            let planted = [lease(key, [192, 0, 2, 9])];
            let drawn: std::collections::BTreeSet<_> = (0..u64::try_from(pool).unwrap())
                .map(|dice| choose(&conf, &planted, &requester(None), dice).unwrap().subnet.ipv4)
                .collect();
            assert_eq!(drawn.len() as u128, pool, "{key}");
            assert!(length_match(&conf, &planted[0].subnet).is_err(), "{key}");
        }
        // The invalid lease is older than ours, but does not take ours away either.
        let ours = Lease { born: 5, ..lease("10.244.7.0-24&fd00:0:0:7::-64", [192, 0, 2, 1]) };
        let choice =
            choose(&conf, &[lease("10.244.0.0-16", [192, 0, 2, 9]), ours.clone()], &requester(None), 0)
                .unwrap();
        assert_eq!((choice.subnet, choice.origin), (ours.subnet, Origin::Reused));
    }

    #[test]
    fn a_lease_of_another_subnet_len_is_valid_and_avoided() {
        let conf = conf(r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.8.0","SubnetMax":"10.244.11.0"}"#);
        for (key, taken) in [("10.244.8.0-23", 2), ("10.244.9.64-26", 1), ("10.244.0.0-18", 4)] {
            let other = lease(key, [192, 0, 2, 9]);
            assert_eq!(length_match(&conf, &other.subnet), Ok(LengthMatch::Other));
            let drawn = |dice| choose(&conf, std::slice::from_ref(&other), &requester(None), dice);
            match taken {
                4 => assert!(drawn(0).unwrap_err().contains("10.244.0.0/18 alone takes 4"), "{key}"),
                _ => {
                    let all: std::collections::BTreeSet<_> =
                        (0..9).map(|dice| drawn(dice).unwrap().subnet).collect();
                    assert_eq!(all.len(), 4 - taken, "{key}");
                    assert!(all.iter().all(|subnet| !overlap(subnet, &other.subnet)), "{key}");
                }
            }
        }
    }

    #[test]
    fn dual_stack_draws_both_families() {
        let conf = conf(r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#);
        let choice = choose(&conf, &[lease("10.3.1.0-24", [192, 0, 2, 2])], &requester(None), 1).unwrap();
        assert_eq!(choice.subnet.to_string(), "10.3.3.0-24&fc00:0:0:2::-64");
    }
}
