//! Policy rules that send destinations inside our networks to a table. They are ours by protocol or by table.

use ipnet::IpNet;
use plan::marks::PROTOCOL;
use plan::owned::Owned;
use plan::state::Rule;
use plan::{Kind, LinkName, Verb};

use crate::devices::Devices;
use crate::error::{Cause, Error};
use crate::filter::{Notifications, OwnWrites};
use crate::kind::{NetlinkKind, Outcome, Prepared, Writable};
use crate::message::{FAMILIES, Message, Odd, Part, family_of};
use crate::reading::Reading;
use crate::socket::Netlink;

const FRA_DST: u16 = 1;
const FRA_PRIORITY: u16 = 6;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_PROTOCOL: u16 = 21;
const FR_ACT_TO_TBL: u8 = 1;
const FIB_RULE_INVERT: u32 = 2;

/// Conditions and actions that our rules never have, with their names in ip-rule(8).
const ODD_ATTRIBUTES: [(u16, &str); 13] = [
    (2, "from"),
    (3, "iif"),
    (4, "goto"),
    (10, "fwmark"),
    (11, "realms"),
    (12, "tun_id"),
    (13, "suppress_ifgroup"),
    (17, "oif"),
    (19, "l3mdev"),
    (20, "uidrange"),
    (22, "ipproto"),
    (23, "sport"),
    (24, "dport"),
];

impl NetlinkKind for Rule {
    const NOTIFICATIONS: Option<Notifications> = Some(Notifications {
        name: Self::NAME,
        groups: &[libc::RTNLGRP_IPV4_RULE, libc::RTNLGRP_IPV6_RULE],
        types: [libc::RTM_NEWRULE, libc::RTM_DELRULE],
        own_writes: OwnWrites::Reported,
        selection: None,
    });

    fn read(reading: &mut Reading<'_>, owned: &Owned) -> Result<Vec<Self>, Error> {
        let mut all = Vec::new();
        for family in FAMILIES {
            let decode = |part: Part<'_>| decode(part, family, owned);
            all.append(&mut reading.netlink.rows("read the rules", dump_request(family), decode)?);
        }
        Ok(all)
    }
}

impl Writable for Rule {
    fn stands_alone(&self, verb: Verb) -> bool {
        verb == Verb::Replace
    }

    fn prepare(&self, verb: Verb, _: &Devices) -> Result<Prepared<'_>, LinkName> {
        Ok(match verb {
            Verb::Add => Prepared::Send(add(self)),
            // The kernel replaces no rule. If none exists yet, only the result of the second request matters.
            Verb::Replace => Prepared::alone(|netlink| {
                let _ = netlink.ask_each([clear(self)]);
                netlink.ask_each([add(self)])
            }),
            Verb::Recreate | Verb::Delete => Prepared::Send(delete(self)),
        })
    }

    fn refused(&self, _: Verb, cause: Cause, _: &mut Netlink, _: &Devices) -> Result<Outcome, Cause> {
        if cause.errno() == Some(libc::EEXIST) { Ok(Outcome::Already) } else { Err(cause) }
    }
}

fn dump_request(family: u8) -> Message {
    Message::new(libc::RTM_GETRULE, libc::NLM_F_DUMP, &[&[family], &[0; 11]])
}

/// Decodes a rule. Returns `None` unless its destination lies in our networks and it has our protocol or table.
pub(crate) fn decode(part: Part<'_>, family: u8, owned: &Owned) -> Option<Rule> {
    let (length, tos, action, flags) = (part.body.u8(1), part.body.u8(3), part.body.u8(7), part.body.u32(8));
    let (mut to, mut priority, mut table, mut protocol) = (None, 0, u32::from(part.body.u8(4)), 0);
    let mut odd = Odd::default();
    for attribute in part.body.attributes(12) {
        match attribute.kind {
            FRA_DST => to = attribute.ip(),
            FRA_PRIORITY => priority = attribute.u32(),
            FRA_TABLE => table = attribute.u32(),
            FRA_PROTOCOL => protocol = attribute.u8(),
            FRA_SUPPRESS_PREFIXLEN if attribute.u32() != u32::MAX => odd.note("suppress_prefixlength"),
            kind => {
                let listed = ODD_ATTRIBUTES.iter().find(|(listed, _)| *listed == kind);
                listed.into_iter().for_each(|(_, name)| odd.note(name));
            }
        }
    }
    if tos != 0 {
        odd.note("tos");
    }
    if action != FR_ACT_TO_TBL {
        odd.note(format_args!("action {action}"));
    }
    if flags & FIB_RULE_INVERT != 0 {
        odd.note("not");
    }
    let to = IpNet::new(to?, length).ok()?;
    let ours = part.body.u8(0) == family && (protocol == PROTOCOL || table == owned.table);
    let inside = owned.all_networks().any(|network| network.contains(&to));
    (ours && inside).then(|| Rule { priority, to, table, protocol, unknown: odd.to_unknown() })
}

fn add(row: &Rule) -> Message {
    message(libc::RTM_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, row)
}

/// Deletes whatever rule has this destination and priority.
fn clear(row: &Rule) -> Message {
    let (address, prefix) = (row.to.addr(), row.to.prefix_len());
    let mut message = Message::new(libc::RTM_DELRULE, 0, &[&[family_of(address), prefix], &[0; 10]]);
    message.ip(FRA_DST, address).u32(FRA_PRIORITY, row.priority);
    message
}

fn delete(row: &Rule) -> Message {
    message(libc::RTM_DELRULE, 0, row)
}

fn message(kind: u16, flags: libc::c_int, row: &Rule) -> Message {
    let (address, prefix) = (row.to.addr(), row.to.prefix_len());
    let header = [family_of(address), prefix, 0, 0, 0, 0, 0, FR_ACT_TO_TBL];
    let mut message = Message::new(kind, flags, &[&header, &[0; 4]]);
    message.ip(FRA_DST, address).u32(FRA_PRIORITY, row.priority).u32(FRA_TABLE, row.table);
    message.u8(FRA_PROTOCOL, row.protocol);
    message
}
