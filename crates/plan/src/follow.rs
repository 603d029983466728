//! Where the uplink is by now: its MTU, its name and its addresses change while pods run. What it was stays in force as long
//! as there is nothing better than nothing; which interface is the right one is `uplink`'s to say.

use std::net::IpAddr;

use crate::input::{AddressFacts, Family, Underlay, Uplink};
use crate::uplink::{Choice, is_link_local};

/// What became of the uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// Where it was, with the MTU of now.
    Here(Uplink),
    /// Under another name, or with other addresses.
    Moved(Choice),
    /// Away, or without its addresses, and nothing takes its place yet.
    Lost,
}

/// `choose` says which interface would be chosen now, if any.
pub fn follow(uplink: &Uplink, underlay: &Underlay, choose: impl FnOnce() -> Option<Choice>) -> Followed {
    let addresses: Vec<IpAddr> =
        Family::ALL.into_iter().filter_map(|family| uplink.address(family)).collect();
    let all = |fits: &dyn Fn(&AddressFacts) -> bool| {
        let is_there =
            |address| underlay.addresses.iter().any(|facts| facts.address.addr() == address && fits(facts));
        addresses.iter().all(|address| is_there(*address))
    };
    let present = underlay.link(uplink.link);
    if present.is_some() && all(&|facts| facts.serves(uplink.link)) {
        let mtu = present.map_or(uplink.mtu, |link| link.mtu);
        return Followed::Here(Uplink { mtu, ..uplink.clone() });
    }
    if present.is_none()
        && let Some(link) = underlay
            .links
            .iter()
            .find(|link| all(&|facts| facts.link == link.name && !facts.is_of_host_alone()))
    {
        let reason = format!("it was {} before and has its addresses", uplink.link);
        let uplink = Uplink { link: link.name, mtu: link.mtu, ..uplink.clone() };
        return Followed::Moved(Choice { uplink, reason, failures: Vec::new() });
    }
    // A link that comes up has its link-local address first, and the lasting one a moment later.
    let is_better = |choice: &Choice| {
        let is_step_down = |family| {
            choice.uplink.address(family).is_some_and(is_link_local)
                && !uplink.address(family).is_some_and(is_link_local)
        };
        choice.uplink != *uplink && !Family::ALL.into_iter().any(is_step_down)
    };
    choose().filter(is_better).map_or(Followed::Lost, Followed::Moved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::LinkFacts;

    fn underlay(addresses: &[(&str, &str)]) -> Underlay {
        let mut links: Vec<LinkFacts> = Vec::new();
        let mut facts = Vec::new();
        for (link, address) in addresses {
            let name = link.parse().unwrap();
            if links.iter().all(|link| link.name != name) {
                let (kind, mac) = (Box::default(), Default::default());
                links.push(LinkFacts { name, kind, mac, mtu: 9000, up: true, carrier: true });
            }
            facts.push(AddressFacts {
                link: name,
                address: address.parse().unwrap(),
                permanent: true,
                temporary: false,
                deprecated: false,
            });
        }
        Underlay { links, addresses: facts, ..Underlay::default() }
    }

    fn uplink() -> Uplink {
        Uplink {
            ipv4: Some([192, 0, 2, 1].into()),
            ipv6: Some("2001:db8::1".parse().unwrap()),
            ..Uplink::new("eth0".parse().unwrap(), 1500)
        }
    }

    fn chosen(link: &str, ipv4: [u8; 4], ipv6: &str) -> Option<Choice> {
        let (ipv4, ipv6) = (Some(ipv4.into()), Some(ipv6.parse().unwrap()));
        let uplink = Uplink { ipv4, ipv6, ..Uplink::new(link.parse().unwrap(), 9000) };
        Some(Choice { uplink, reason: "asked".into(), failures: Vec::new() })
    }

    const HERE: [(&str, &str); 2] = [("eth0", "192.0.2.1/24"), ("eth0", "2001:db8::1/64")];

    #[test]
    fn where_it_was_nobody_is_asked_and_the_mtu_is_that_of_now() {
        let there = underlay(&[HERE[0], HERE[1], ("eth0", "192.0.2.9/24"), ("eth1", "192.0.2.1/32")]);
        let followed = follow(&uplink(), &there, || unreachable!());
        assert_eq!(followed, Followed::Here(Uplink { mtu: 9000, ..uplink() }));
    }

    #[test]
    fn a_hosts_address_on_loopback_is_there() {
        let there = underlay(&[("lo", "192.0.2.1/32"), HERE[1]]);
        assert!(matches!(follow(&uplink(), &there, || unreachable!()), Followed::Here(_)));
        // But it is no new name of the uplink.
        let gone = underlay(&[("lo", "192.0.2.1/32"), ("lo", "2001:db8::1/128")]);
        assert_eq!(follow(&uplink(), &gone, || None), Followed::Lost);
    }

    #[test]
    fn a_new_name_is_known_by_the_addresses() {
        let there = underlay(&[("ens3", HERE[0].1), ("ens3", HERE[1].1)]);
        let Followed::Moved(choice) = follow(&uplink(), &there, || unreachable!()) else { panic!() };
        assert_eq!(choice.uplink, Uplink { link: "ens3".parse().unwrap(), mtu: 9000, ..uplink() });
    }

    #[test]
    fn another_address_is_taken_up_and_a_link_local_one_in_place_of_a_lasting_one_is_not() {
        let there = underlay(&[("eth0", "192.0.2.7/24"), HERE[1]]);
        let new = || chosen("eth0", [192, 0, 2, 7], "2001:db8::1");
        assert_eq!(follow(&uplink(), &there, new), Followed::Moved(new().unwrap()));
        let passing = || chosen("eth0", [192, 0, 2, 1], "fe80::1");
        assert_eq!(follow(&uplink(), &underlay(&HERE[..1]), passing), Followed::Lost);
        assert_eq!(follow(&uplink(), &underlay(&[]), || None), Followed::Lost);
    }

    #[test]
    fn a_link_without_the_address_is_not_renamed_by_another_that_has_it() {
        let there = underlay(&[("eth0", "2001:db8::1/64"), ("eth1", HERE[0].1), ("eth1", HERE[1].1)]);
        let other = || chosen("eth1", [192, 0, 2, 1], "2001:db8::1");
        assert_eq!(follow(&uplink(), &there, other), Followed::Moved(other().unwrap()));
        assert_eq!(follow(&uplink(), &there, || None), Followed::Lost);
    }
}
