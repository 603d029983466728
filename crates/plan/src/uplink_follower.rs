//! Follows the uplink while pods run, since its name and its addresses may change. The previous uplink stays in force
//! until a usable one appears. `uplink` decides which interface is the right one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::family::Family;
use crate::node::Uplink;
use crate::underlay::{AddressFacts, Underlay};
use crate::uplink::{Class, UplinkChoice};

/// Time to wait for a lost address before another one that was there beside it takes its place. A DHCP client that renews
/// its lease may take the address away for a second.
pub const LOST_ADDRESS_WAIT: Duration = Duration::from_secs(5);

/// Time after which a new address counts as one that was there beside ours, not as the successor of ours.
const SUCCESSOR_AGE: Duration = Duration::from_secs(10);

/// Result of following the uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// Unchanged uplink.
    Here,
    /// Uplink under another name, or with other addresses.
    Moved(UplinkChoice),
    /// Uplink that is gone, or without its addresses, while nothing takes its place yet.
    Lost,
}

/// State that is kept from one look at the underlay to the next.
#[derive(Clone, Debug, Default)]
pub struct Follower {
    /// Addresses where the node belongs, which it had to leave for something worse.
    home: Vec<IpAddr>,
    /// Time since which the uplink is lost.
    away: Option<Duration>,
    /// Suitability of the addresses in force.
    classes: Vec<Class>,
    /// Addresses of the node. `None` before the first look.
    known: Option<BTreeMap<IpAddr, Known>>,
}

/// Address that the node has, or had a moment ago.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Time until which the address counts as new.
    new_until: Duration,
    /// Time of the first look at which the address was gone.
    gone: Option<Duration>,
}

impl Follower {
    /// Returns a follower. `home` has the addresses of an earlier run; the node may have started without them.
    pub fn with_former_addresses(home: Vec<IpAddr>) -> Self {
        Self { home, ..Self::default() }
    }

    /// Finds where the uplink is now. `now` is the time since any fixed moment. `choose` returns what a node would choose
    /// that remembers the given addresses, best evidence first.
    pub fn follow(
        &mut self,
        uplink: &Uplink,
        underlay: &Underlay,
        now: Duration,
        choose: impl FnOnce(&[IpAddr]) -> Option<UplinkChoice>,
    ) -> Followed {
        let current = addresses(uplink);
        self.record_new_addresses(&current, underlay, now);
        let present = underlay.link(uplink.link).is_some();
        if present && all_there(&current, underlay, |facts| facts.serves(uplink.link)) {
            self.away = None;
            self.classes = classes(&current, underlay);
            let may = self.may_be_better(&current, underlay);
            let better = may.then(|| self.better(uplink, underlay, choose)).flatten();
            return better.map_or(Followed::Here, Followed::Moved);
        }
        if !present
            && let Some(link) = underlay.links.iter().find(|link| {
                all_there(&current, underlay, |facts| facts.link == link.name && !facts.is_of_host_alone())
            })
        {
            let reason = format!("it has the addresses of {}, which was the uplink before", uplink.link);
            let uplink = Uplink { link: link.name, mtu: link.mtu, ..uplink.clone() };
            return Followed::Moved(UplinkChoice { uplink, reason, failures: Vec::new() });
        }
        let away = *self.away.get_or_insert(now);
        let Some(choice) = choose(&self.successors(&current, underlay, now))
            .filter(|choice| self.takes_its_place(choice, uplink, underlay))
        else {
            return Followed::Lost;
        };
        if self.is_new_address(&choice, &current, underlay, now) {
            self.home.clear();
        } else if now < away + LOST_ADDRESS_WAIT {
            return Followed::Lost;
        } else if self.home.is_empty() {
            self.home = current;
        }
        self.away = None;
        Followed::Moved(choice)
    }

    /// Notes the addresses that are there. An address that went together with ours is remembered for a while. With a
    /// primary address the kernel removes the secondary ones. A DHCP client's script may put these back before ours.
    fn record_new_addresses(&mut self, current: &[IpAddr], underlay: &Underlay, now: Duration) {
        // An address that is there at the first look may always have been there.
        let newest = if self.known.is_some() { now + SUCCESSOR_AGE } else { now };
        let known = self.known.get_or_insert_default();
        let present: BTreeSet<IpAddr> = underlay.addresses.iter().map(|facts| facts.address.addr()).collect();
        for address in &present {
            known.entry(*address).or_insert(Known { new_until: newest, gone: None }).gone = None;
        }
        known.retain(|address, known| {
            present.contains(address)
                || (now < *known.gone.get_or_insert(now) + SUCCESSOR_AGE && !current.contains(address))
        });
    }

    /// Returns our own addresses, then the new ones, which may be meant to replace ours.
    fn successors(&self, current: &[IpAddr], underlay: &Underlay, now: Duration) -> Vec<IpAddr> {
        let mut news: Vec<&AddressFacts> =
            underlay.addresses.iter().filter(|facts| self.is_new(facts.address.addr(), now)).collect();
        news.sort_by_key(|facts| Class::of(facts));
        current.iter().copied().chain(news.into_iter().map(|facts| facts.address.addr())).collect()
    }

    fn is_new(&self, address: IpAddr, now: Duration) -> bool {
        self.known.as_ref().and_then(|all| all.get(&address)).is_some_and(|known| now < known.new_until)
    }

    /// Returns true if there is any evidence that something may be better than the present uplink.
    fn may_be_better(&self, current: &[IpAddr], underlay: &Underlay) -> bool {
        let fading = |address: &IpAddr| {
            facts_of(*address, underlay).is_some_and(|facts| facts.deprecated || facts.duplicate)
        };
        (!self.home.is_empty() && self.home != current) || current.iter().any(fading)
    }

    /// Returns a choice that leads home, or to an address that is not about to go.
    fn better(
        &mut self,
        uplink: &Uplink,
        underlay: &Underlay,
        choose: impl FnOnce(&[IpAddr]) -> Option<UplinkChoice>,
    ) -> Option<UplinkChoice> {
        let current = addresses(uplink);
        let mut remembered = self.home.clone();
        // Away from home, the present addresses are no evidence.
        if self.home.is_empty() {
            remembered.clone_from(&current);
        }
        let choice = choose(&remembered)?;
        let chosen = addresses(&choice.uplink);
        let is_home = |address: &&IpAddr| self.home.contains(address);
        let mut others = chosen.iter().filter(|address| !current.contains(address)).peekable();
        if others.peek().is_none() && choice.uplink.link == uplink.link {
            return None;
        }
        let is_duplicate =
            |address: &IpAddr| facts_of(*address, underlay).is_some_and(|facts| facts.duplicate);
        if !others.all(|address| is_home(&address))
            && !suits_better(&classes(&chosen, underlay), &self.classes)
            && !current.iter().any(is_duplicate)
        {
            return None;
        }
        self.home.retain(|address| !chosen.contains(address));
        Some(choice)
    }

    /// Returns true if the choice may replace the uplink. A link-local address never replaces a lasting one: a link that
    /// comes up has its link-local address first.
    fn takes_its_place(&self, choice: &UplinkChoice, uplink: &Uplink, underlay: &Underlay) -> bool {
        let is_step_down = |family| {
            let [was, is] = [uplink, &choice.uplink].map(|uplink| uplink.address(family));
            let of_link = |address: Option<IpAddr>| address.is_some_and(crate::ip_address::is_link_local);
            of_link(is) && !of_link(was)
        };
        let chosen = addresses(&choice.uplink);
        let is_another = (choice.uplink.link, &chosen) != (uplink.link, &addresses(uplink));
        let is_there = all_there(&chosen, underlay, |facts| facts.serves(choice.uplink.link));
        is_another && is_there && !Family::ALL.into_iter().any(is_step_down)
    }

    /// Returns true if the chosen addresses are ours or new, and suit no less than ours did.
    fn is_new_address(
        &self,
        choice: &UplinkChoice,
        current: &[IpAddr],
        underlay: &Underlay,
        now: Duration,
    ) -> bool {
        let chosen = addresses(&choice.uplink);
        let is_new = |address: &IpAddr| current.contains(address) || self.is_new(*address, now);
        let classes = classes(&chosen, underlay);
        let no_worse = self.classes.len() != classes.len()
            || classes.iter().zip(&self.classes).all(|(is, was)| is <= was);
        chosen.iter().all(is_new) && no_worse
    }
}

/// Returns true if `is` suits better in at least one family and worse in none.
fn suits_better(is: &[Class], was: &[Class]) -> bool {
    is.len() == was.len() && is != was && is.iter().zip(was).all(|(is, was)| is <= was)
}

fn addresses(uplink: &Uplink) -> Vec<IpAddr> {
    uplink.addresses().collect()
}

fn facts_of(address: IpAddr, underlay: &Underlay) -> Option<&AddressFacts> {
    underlay.addresses.iter().find(|facts| facts.address.addr() == address)
}

fn classes(addresses: &[IpAddr], underlay: &Underlay) -> Vec<Class> {
    addresses.iter().filter_map(|address| facts_of(*address, underlay).map(Class::of)).collect()
}

fn all_there(addresses: &[IpAddr], underlay: &Underlay, fits: impl Fn(&AddressFacts) -> bool) -> bool {
    let is_there = |address: &IpAddr| {
        underlay.addresses.iter().any(|facts| facts.address.addr() == *address && fits(facts))
    };
    addresses.iter().all(is_there)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::underlay::LinkFacts;

    /// Returns an underlay of links with their addresses, such as `eth0 192.0.2.1/24, eth1 -`. Marks behind an address:
    /// `!` deprecated, `x` on another machine too, `?` temporary.
    fn underlay(addresses: &str) -> Underlay {
        let mut underlay = Underlay::default();
        for (link, address) in addresses.split(", ").filter_map(|word| word.split_once(' ')) {
            let link = link.parse().unwrap();
            if underlay.link(link).is_none() {
                underlay.links.push(LinkFacts { name: link, mtu: 9000, ..LinkFacts::default() });
            }
            if address == "-" {
                continue;
            }
            underlay.addresses.push(AddressFacts {
                link,
                address: address.trim_end_matches(['!', 'x', '?']).parse().unwrap(),
                permanent: true,
                temporary: address.contains('?'),
                deprecated: address.contains('!'),
                tentative: false,
                duplicate: address.contains('x'),
            });
        }
        underlay
    }

    /// Returns the uplink on that link, with these addresses.
    fn at(link: &str, addresses: &str) -> Uplink {
        let mut uplink = Uplink::new(link.parse().unwrap(), 9000);
        for address in addresses.split_whitespace().map(|address| address.parse().unwrap()) {
            match address {
                IpAddr::V4(address) => uplink.ipv4 = Some(address),
                IpAddr::V6(address) => uplink.ipv6 = Some(address),
            }
        }
        uplink
    }

    /// Returns the choice of the real ranking with `--iface`.
    fn chosen(
        link: &str,
        underlay: &Underlay,
        families: &str,
        remembered: &[IpAddr],
    ) -> Option<UplinkChoice> {
        let mut text = r#"{"Network":"10.244.0.0/16","#.to_owned();
        if families.contains('6') {
            text += r#""EnableIPv6":true,"IPv6Network":"fd00:244::/48","#;
        }
        text += r#""Backend":{"Type":"vxlan"}}"#;
        let config = crate::netconf::NetConf::parse(text.as_bytes()).unwrap().config();
        let ask = crate::uplink::Ask {
            ifaces: vec![link.into()],
            remembered: remembered.to_vec(),
            ..Default::default()
        };
        crate::uplink::choose(&config, underlay, &ask).ok()
    }

    /// Shows the follower each scene at its second. The third value, such as `eth0 192.0.2.1`, is the uplink that is
    /// expected afterwards.
    fn story(start: &str, home: &[&str], scenes: &[(u64, &str, &str)]) {
        let (link, addresses) = start.split_once(' ').unwrap();
        let families = if start.contains(':') { "46" } else { "4" };
        let mut uplink = at(link, addresses);
        let home = home.iter().map(|address| address.parse().unwrap()).collect();
        let mut follower = Follower::with_former_addresses(home);
        for (second, scene, expected) in scenes {
            let there = underlay(scene);
            let choose = |remembered: &[IpAddr]| chosen("eth0", &there, families, remembered);
            let followed = follower.follow(&uplink, &there, Duration::from_secs(*second), choose);
            let told = match followed {
                Followed::Lost => "lost".to_owned(),
                Followed::Here | Followed::Moved(_) => {
                    if let Followed::Moved(choice) = followed {
                        uplink = choice.uplink;
                    }
                    let addresses: Vec<String> =
                        super::addresses(&uplink).iter().map(IpAddr::to_string).collect();
                    format!("{} {}", uplink.link, addresses.join(" "))
                }
            };
            assert_eq!(told, *expected, "{second} s: {scene}");
        }
    }

    const OWN: &str = "eth0 192.0.2.11";

    #[test]
    fn an_address_missing_for_a_second_is_not_replaced() {
        let all = "eth0 192.0.2.11/24, eth0 192.0.2.100/32, eth0 192.0.2.101/32";
        let vips = "eth0 192.0.2.100/32, eth0 192.0.2.101/32";
        let back = "eth0 192.0.2.100/32, eth0 192.0.2.101/32, eth0 192.0.2.11/24";
        story(OWN, &[], &[(0, all, OWN), (20, vips, "lost"), (21, back, OWN), (40, back, OWN)]);
        // An address of the same network is treated alike, though only its earlier presence tells it apart.
        let beside = ("eth0 192.0.2.11/24, eth0 192.0.2.100/24", "eth0 192.0.2.100/24");
        story(OWN, &[], &[(0, beside.0, OWN), (20, beside.1, "lost"), (22, beside.0, OWN)]);
        // The kernel removes secondary addresses with the primary one, and they may come back before it.
        let renewal =
            [(0, beside.0, OWN), (20, "eth0 -", "lost"), (21, beside.1, "lost"), (22, beside.0, OWN)];
        story(OWN, &[], &renewal);
    }

    #[test]
    fn a_lost_address_is_replaced_and_used_again_on_its_return() {
        let vip = "eth0 192.0.2.100";
        let (all, left) = ("eth0 192.0.2.100/32, eth0 192.0.2.11/24", "eth0 192.0.2.100/32");
        story(
            OWN,
            &[],
            &[
                (0, all, OWN),
                (20, left, "lost"),
                (24, left, "lost"),
                (25, left, vip),
                (90, left, vip),
                (91, all, OWN),
            ],
        );
        // The uplink moves from one virtual address to the next, and still goes home.
        let other = "eth0 192.0.2.101/32";
        story(
            OWN,
            &[],
            &[
                (0, "eth0 192.0.2.100/32, eth0 192.0.2.11/24, eth0 192.0.2.101/32", OWN),
                (20, "eth0 192.0.2.100/32, eth0 192.0.2.101/32", "lost"),
                (26, "eth0 192.0.2.100/32, eth0 192.0.2.101/32", vip),
                (40, other, "lost"),
                (46, other, "eth0 192.0.2.101"),
                (50, "eth0 192.0.2.101/32, eth0 192.0.2.11/24", OWN),
            ],
        );
        // An address that suits better than the present one is taken, though it is not home.
        story(
            OWN,
            &[],
            &[
                (0, all, OWN),
                (20, left, "lost"),
                (25, left, vip),
                (60, "eth0 192.0.2.100/32, eth0 192.0.2.51/24", "eth0 192.0.2.51"),
            ],
        );
    }

    #[test]
    fn a_new_address_is_followed_at_once() {
        let new = "eth0 192.0.2.51";
        story(
            OWN,
            &[],
            &[(0, "eth0 192.0.2.11/24", OWN), (20, "eth0 -", "lost"), (20, "eth0 192.0.2.51/24", new)],
        );
        // The DHCP client adds the new address before it takes the old one away.
        let both = "eth0 192.0.2.11/24, eth0 192.0.2.51/24";
        story(OWN, &[], &[(0, "eth0 192.0.2.11/24", OWN), (20, both, OWN), (22, "eth0 192.0.2.51/24", new)]);
        // The new address is among virtual ones that were there before and that come first on the device.
        let beside = "eth0 192.0.2.100/24, eth0 192.0.2.11/24";
        story(
            OWN,
            &[],
            &[(0, beside, OWN), (20, "eth0 192.0.2.100/24, eth0 192.0.2.51/24", new), (30, beside, OWN)],
        );
        // An address without a network suits less, however new it is.
        story(
            OWN,
            &[],
            &[
                (0, "eth0 192.0.2.11/24", OWN),
                (20, "eth0 192.0.2.51/32", "lost"),
                (25, "eth0 192.0.2.51/32", new),
            ],
        );
    }

    #[test]
    fn a_link_local_address_never_replaces_a_global_one() {
        story(
            OWN,
            &[],
            &[
                (0, "eth0 192.0.2.11/24", OWN),
                (20, "eth0 169.254.1.1/16", "lost"),
                (90, "eth0 169.254.1.1/16", "lost"),
            ],
        );
    }

    #[test]
    fn a_deprecated_address_is_left_only_for_a_preferred_one() {
        let own = "eth0 192.0.2.11 2001:db8::11";
        let new = "eth0 192.0.2.11 2001:db8::51";
        let v4 = "eth0 192.0.2.11/24";
        let with = |rest: &str| format!("{v4}, {rest}");
        let (one, fading) = (with("eth0 2001:db8::11/64"), with("eth0 2001:db8::11/64!"));
        let both = with("eth0 2001:db8::11/64!, eth0 2001:db8::51/64");
        let back = with("eth0 2001:db8::11/64, eth0 2001:db8::51/64!");
        story(
            own,
            &[],
            &[(0, &one, own), (20, &fading, own), (21, &both, new), (22, &both, new), (40, &back, own)],
        );
        story(own, &[], &[(0, &one, own), (20, &with("eth0 2001:db8::11/64!, eth0 fe80::1/64"), own)]);
        story(own, &[], &[(0, &one, own), (20, &with("eth0 2001:db8::11/64!, eth0 2001:db8::51/64!"), own)]);
        // Another machine has the address as well.
        story(own, &[], &[(0, &one, own), (20, &with("eth0 2001:db8::11/64x, eth0 2001:db8::51/64"), new)]);
    }

    #[test]
    fn a_node_on_a_virtual_address_returns_to_its_own_address() {
        let vip = "eth0 192.0.2.100";
        let home = ["192.0.2.11"];
        story(
            vip,
            &home,
            &[(0, "eth0 192.0.2.100/24", vip), (30, "eth0 192.0.2.100/24, eth0 192.0.2.11/24", OWN)],
        );
    }

    #[test]
    fn an_own_address_on_loopback_is_not_a_renamed_uplink() {
        let there = "lo 192.0.2.11/32, eth0 -";
        story(OWN, &[], &[(0, there, OWN), (1, "lo 192.0.2.11/32", "lost")]);
    }

    #[test]
    fn a_renamed_uplink_is_recognized_by_its_addresses() {
        let mut follower = Follower::default();
        let uplink = at("eth0", "192.0.2.11 2001:db8::11");
        let there = underlay("ens3 192.0.2.11/24, ens3 2001:db8::11/64");
        let followed = follower.follow(&uplink, &there, Duration::ZERO, |_| unreachable!());
        let Followed::Moved(choice) = followed else { panic!() };
        assert_eq!(choice.uplink, at("ens3", "192.0.2.11 2001:db8::11"));
    }

    #[test]
    fn an_unchanged_uplink_needs_no_new_choice() {
        let mut follower = Follower::default();
        let there = underlay("eth0 192.0.2.9/24, eth0 192.0.2.11/24, eth1 192.0.2.11/32");
        let followed = follower.follow(&at("eth0", "192.0.2.11"), &there, Duration::ZERO, |_| unreachable!());
        assert_eq!(followed, Followed::Here);
    }
}
