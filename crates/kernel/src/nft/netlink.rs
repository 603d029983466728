//! Reads tables, sets and the elements of a set by nfnetlink, without a process. It changes only elements of sets.
//! Numbers are those of `linux/netfilter/nf_tables.h`.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use plan::underlay::UnknownSender;
use plan::{Family, Verb};

use super::sets::SetName;
use crate::error::Cause;
use crate::message::{Attribute, Message, Part};
use crate::socket::Netlink;

/// Number of nf_tables among the subsystems of nfnetlink; the high byte of its message types.
pub(super) const SUBSYSTEM: u16 = 10;

const GET_TABLE: u16 = 1;
const GET_SET: u16 = 10;
const NEW_ELEMENTS: u16 = 12;
const GET_ELEMENTS: u16 = 13;
const DELETE_ELEMENTS: u16 = 14;

/// Attribute with the table's name, in the messages of all objects.
pub(super) const TABLE: u16 = 1;

/// Attribute with the set's name, in a message about elements.
const SET: u16 = 2;
/// Attribute with the list of elements, in a message about elements.
const ELEMENTS: u16 = 3;
/// Attribute with one element, in the list.
const ELEMENT: u16 = 1;
/// Attribute with the key, in an element.
const KEY: u16 = 1;
/// Attribute with the value, in a key.
const VALUE: u16 = 1;
/// Attribute with the lifetime in ms, in an element.
const LIFETIME: u16 = 4;
/// Flag of an attribute that consists of attributes.
const NESTED: u16 = 0x8000;

/// Maximum number of addresses in one transaction. In a user namespace the send buffer has the default size (208 KiB),
/// and an IPv6 element takes 28 bytes.
pub(super) const PART: usize = 1000;

/// Protocol families, with their names in nft(8).
const FAMILIES: [(u8, &str); 6] =
    [(1, "inet"), (2, "ip"), (3, "arp"), (5, "netdev"), (7, "bridge"), (10, "ip6")];

/// A table of nf_tables, ours or foreign.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    family: u8,
    name: Box<str>,
    flags: u32,
}

impl Table {
    pub(super) fn is_ours(&self, family: Family) -> bool {
        (self.family, &*self.name) == (number(family), family.nft_table())
    }

    /// Returns protocol family and name.
    pub(super) fn key(&self) -> (u8, Box<str>) {
        (self.family, self.name.clone())
    }

    /// Returns true if the kernel ignores the table's rules.
    pub(super) fn is_dormant(&self) -> bool {
        self.flags & 1 != 0
    }

    /// Returns true if only the process that created the table may change it.
    pub(super) fn is_owned(&self) -> bool {
        self.flags & 2 != 0
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", family_name(self.family), self.name)
    }
}

/// Returns the name of a protocol family in nft(8); `?` for an unknown one.
pub(super) fn family_name(number: u8) -> &'static str {
    FAMILIES.iter().find(|(known, _)| *known == number).map_or("?", |(_, name)| name)
}

/// A set, with the properties that show whether it is one of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) name: Box<str>,
    pub(super) flags: u32,
    pub(super) key_type: u32,
    /// Maximum number of elements; 0 for no limit.
    pub(super) size: u32,
    /// Lifetime of an element in ms; 0 for no limit.
    pub(super) timeout: u64,
}

/// Returns the tables of all families.
pub(super) fn tables(netlink: &mut Netlink) -> Result<Vec<Table>, Cause> {
    netlink.dump(request(GET_TABLE, 0), |all: &mut Vec<_>, part| all.push(table(part)))
}

/// Returns the sets of flannel's table.
pub(super) fn sets(netlink: &mut Netlink, family: Family) -> Result<Vec<Set>, Cause> {
    let mut request = request(GET_SET, number(family));
    request.text(TABLE, family.nft_table());
    netlink.dump(request, |all: &mut Vec<_>, part| all.push(set(part)))
}

/// Returns the addresses in that set, each with the number of its packets.
pub(super) fn elements(
    netlink: &mut Netlink,
    family: Family,
    name: SetName,
) -> Result<Vec<UnknownSender>, Cause> {
    let mut request = request(GET_ELEMENTS, number(family));
    request.text(TABLE, family.nft_table()).text(SET, name.as_str());
    netlink.dump(request, |all: &mut Vec<_>, part| all.extend(elements_of(part)))
}

/// Adds all these addresses to the peers' sets, then deletes those with the verb `Delete`. So a missing address is no
/// error. Each [`PART`] of them is one transaction.
pub(super) fn change_peers(netlink: &mut Netlink, addresses: &[(Verb, IpAddr)]) -> Result<(), Cause> {
    addresses.chunks(PART).try_for_each(|part| {
        let gone: Vec<_> = part.iter().filter(|(verb, _)| *verb == Verb::Delete).copied().collect();
        let add = change(NEW_ELEMENTS, libc::NLM_F_CREATE, part);
        netlink.transaction(add.chain(change(DELETE_ELEMENTS, 0, &gone)).collect())
    })
}

/// Puts UDP into the sets `keeper` of these families, for that time, in one transaction. The sets are emptied first:
/// kernels before 6.12 do not extend the time of an element that exists.
pub(super) fn keep(netlink: &mut Netlink, families: &[Family], time: Duration) -> Result<(), Cause> {
    let message = |kind, flags, family: Family| {
        let mut request = Message::new(SUBSYSTEM << 8 | kind, flags, &[&[number(family), 0, 0, 0]]);
        request.text(TABLE, family.nft_table()).text(SET, SetName::Keeper.as_str());
        request
    };
    let lifetime = (time.as_millis() as u64).to_be_bytes();
    let renewals = families.iter().flat_map(|family| {
        // A deletion that names no element empties the set.
        let empty = message(DELETE_ELEMENTS, 0, *family);
        let mut add = message(NEW_ELEMENTS, libc::NLM_F_CREATE, *family);
        add.nest(NESTED | ELEMENTS, |list| {
            list.nest(NESTED | ELEMENT, |element| {
                element.nest(NESTED | KEY, |key| _ = key.u8(VALUE, libc::IPPROTO_UDP as u8));
                element.put(LIFETIME, &lifetime);
            });
        });
        [empty, add]
    });
    netlink.transaction(renewals.collect())
}

/// Returns true if the set `keeper` of that family has an element.
pub(super) fn is_kept(netlink: &mut Netlink, family: Family) -> Result<bool, Cause> {
    let mut request = request(GET_ELEMENTS, number(family));
    request.text(TABLE, family.nft_table()).text(SET, SetName::Keeper.as_str());
    netlink.dump(request, |kept: &mut bool, part| {
        let mut lists = attributes(part).filter(|attribute| attribute.kind == ELEMENTS);
        *kept |= lists.any(|list| list.nested().next().is_some());
    })
}

/// Returns a message for each family that has addresses.
fn change(kind: u16, flags: libc::c_int, part: &[(Verb, IpAddr)]) -> impl Iterator<Item = Message> {
    Family::ALL.into_iter().filter_map(move |family| {
        let addresses = part.iter().map(|(_, address)| *address);
        let mut addresses = addresses.filter(|address| Family::of(*address) == family).peekable();
        addresses.peek()?;
        let mut request = Message::new(SUBSYSTEM << 8 | kind, flags, &[&[number(family), 0, 0, 0]]);
        request.text(TABLE, family.nft_table()).text(SET, SetName::Peers.as_str());
        request.nest(NESTED | ELEMENTS, |list| {
            for address in addresses {
                list.nest(NESTED | ELEMENT, |element| {
                    element.nest(NESTED | KEY, |key| _ = key.ip(VALUE, address));
                });
            }
        });
        Some(request)
    })
}

/// Returns `NFPROTO_IPV4` or `NFPROTO_IPV6`.
pub(super) fn number(family: Family) -> u8 {
    match family {
        Family::Ipv4 => 2,
        Family::Ipv6 => 10,
    }
}

/// Starts a dump. `struct nfgenmsg` holds the family, the version 0 and an unused number.
fn request(kind: u16, family: u8) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, libc::NLM_F_DUMP, &[&[family, 0, 0, 0]])
}

/// Returns the attributes after `struct nfgenmsg`.
pub(super) fn attributes(part: Part<'_>) -> impl Iterator<Item = Attribute<'_>> {
    part.body.attributes(4)
}

fn table(part: Part<'_>) -> Table {
    const FLAGS: u16 = 2;
    let mut table = Table { family: part.body.u8(0), ..Table::default() };
    for attribute in attributes(part) {
        match attribute.kind {
            TABLE => table.name = attribute.text().into(),
            FLAGS => table.flags = attribute.be32(),
            _ => {}
        }
    }
    table
}

fn set(part: Part<'_>) -> Set {
    const NAME: u16 = 2;
    const FLAGS: u16 = 3;
    const KEY_TYPE: u16 = 4;
    const DESCRIPTION: u16 = 9;
    const SIZE: u16 = 1;
    const TIMEOUT: u16 = 11;
    let mut set = Set::default();
    for attribute in attributes(part) {
        match attribute.kind {
            NAME => set.name = attribute.text().into(),
            FLAGS => set.flags = attribute.be32(),
            KEY_TYPE => set.key_type = attribute.be32(),
            DESCRIPTION => set.size = nested(attribute, SIZE).map_or(0, Attribute::be32),
            TIMEOUT => set.timeout = attribute.be64(),
            _ => {}
        }
    }
    set
}

fn elements_of(part: Part<'_>) -> impl Iterator<Item = UnknownSender> {
    let lists = attributes(part).filter(|attribute| attribute.kind == ELEMENTS);
    lists.flat_map(Attribute::nested).filter_map(element)
}

fn element(element: Attribute<'_>) -> Option<UnknownSender> {
    const EXPRESSION: u16 = 7;
    let address: IpAddr = nested(nested(element, KEY)?, VALUE)?.ip()?;
    let packets = nested(element, EXPRESSION).and_then(packets).unwrap_or(0);
    Some(UnknownSender { address, packets })
}

/// Returns the number of packets of a counter.
fn packets(expression: Attribute<'_>) -> Option<u64> {
    const DATA: u16 = 2;
    const PACKETS: u16 = 2;
    Some(nested(nested(expression, DATA)?, PACKETS)?.be64())
}

pub(super) fn nested(attribute: Attribute<'_>, kind: u16) -> Option<Attribute<'_>> {
    attribute.nested().find(|inner| inner.kind == kind)
}

#[cfg(fuzzing)]
pub(super) fn fuzz(part: Part<'_>) {
    let _ = (table(part), set(part), elements_of(part).count());
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn set_elements_change_atomically_and_without_delay() {
        lab::test(lab::Timing::Free, || {
            let mut netlink = Netlink::netfilter().unwrap();
            let (four, five): (IpAddr, IpAddr) = ([192, 0, 2, 4].into(), [192, 0, 2, 5].into());
            let six: IpAddr = "2001:db8::6".parse().unwrap();
            let mut change = |changes: &[(Verb, IpAddr)]| {
                let start = Instant::now();
                let done = change_peers(&mut netlink, changes);
                lab::in_time("what waits for no answer", start.elapsed(), Duration::from_secs(2));
                let peers = elements(&mut netlink, Family::Ipv4, SetName::Peers).unwrap_or_default();
                (done, peers.into_iter().map(|peer| peer.address).collect::<Vec<_>>())
            };
            let refused = |errno| Err(Cause::Refused { errno, text: None });
            assert_eq!(change(&[(Verb::Add, four)]), (refused(libc::ENOENT), vec![]));
            let nft = "add table ip flannel-ipv4; add set ip flannel-ipv4 vteps { type ipv4_addr; }";
            assert!(Command::new("nft").arg(nft).status().unwrap().success());
            assert_eq!(change(&[(Verb::Add, four)]), (Ok(()), vec![four]));
            assert_eq!(change(&[(Verb::Add, five), (Verb::Add, six)]), (refused(libc::ENOENT), vec![four]));
            assert_eq!(change(&[(Verb::Add, six), (Verb::Add, five)]), (refused(libc::ENOENT), vec![four]));
            assert_eq!(change(&[(Verb::Delete, four), (Verb::Add, five)]), (Ok(()), vec![five]));
            assert_eq!(change(&[(Verb::Delete, four), (Verb::Add, five)]), (Ok(()), vec![five]));
        });
    }

    #[test]
    fn a_renewed_keeper_lasts_and_one_that_is_not_renewed_expires() {
        lab::test(lab::Timing::Free, || {
            let mut netlink = Netlink::netfilter().unwrap();
            let nft = "add table ip flannel-ipv4; add set ip flannel-ipv4 keeper { type inet_proto; flags timeout; }
                       add table ip6 flannel-ipv6; add set ip6 flannel-ipv6 keeper { type inet_proto; flags timeout; }";
            assert!(Command::new("nft").arg(nft).status().unwrap().success());
            let mut kept = || Family::ALL.map(|family| is_kept(&mut netlink, family).unwrap());
            assert_eq!(kept(), [false, false]);
            let mut renewing = Netlink::netfilter().unwrap();
            let (short, long) = (Duration::from_millis(100), Duration::from_secs(60));
            keep(&mut renewing, &Family::ALL, short).unwrap();
            keep(&mut renewing, &[Family::Ipv4], long).unwrap();
            lab::wait_for("the one that is not renewed expires", Duration::from_secs(5), || !kept()[1]);
            assert_eq!(kept(), [true, false]);
            let again = Instant::now();
            keep(&mut renewing, &Family::ALL, short).unwrap();
            lab::wait_for("the last renewal counts", Duration::from_secs(5), || kept() == [false, false]);
            assert!(again.elapsed() >= short / 2, "it was in force before");
        });
    }

    #[test]
    fn a_missing_capability_is_reported_at_once() {
        const INNER: &str = "WITHOUT_NET_ADMIN";
        if std::env::var_os(INNER).is_some() {
            let mut netlink = Netlink::netfilter().unwrap();
            let denied = Cause::Refused { errno: libc::EPERM, text: None };
            assert_eq!(tables(&mut netlink), Err(denied.clone()));
            let start = Instant::now();
            assert_eq!(change_peers(&mut netlink, &[(Verb::Add, [192, 0, 2, 4].into())]), Err(denied));
            lab::in_time("what waits for no answer", start.elapsed(), Duration::from_secs(2));
            return;
        }
        lab::test(lab::Timing::Free, || {
            let test = "nft::netlink::tests::a_missing_capability_is_reported_at_once";
            let mut less = Command::new("setpriv");
            less.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"]);
            less.arg(std::env::current_exe().unwrap()).args(["--exact", test]).env(INNER, "1");
            let out = less.output().unwrap();
            let said = String::from_utf8_lossy(&out.stdout);
            assert!(said.contains("test result: ok. 1 passed;"), "{said}");
        });
    }
}
