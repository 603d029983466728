//! Links: the rows of the devices with our names, and the messages that create, change and delete ours.

use libc::{
    BPF_IND, BPF_W, IFLA_ADDRESS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU,
};
use plan::owned::Owned;
use plan::state::{Link, LinkKind, Vxlan};
use plan::{Kind, LinkName, Verb};
use socket2::SockFilter;

use crate::devices::{
    self, Devices, IFLA_VXLAN_GBP, IFLA_VXLAN_ID, IFLA_VXLAN_LEARNING, IFLA_VXLAN_LINK, IFLA_VXLAN_LOCAL,
    IFLA_VXLAN_LOCAL6, IFLA_VXLAN_PORT, IFLA_VXLAN_TOS, IFLA_VXLAN_TTL,
};
use crate::error::{Cause, Error};
use crate::filter::{ACCEPT, DROP, Interest, Notifications, OwnWrites, by_index, equal, find, load};
use crate::kind::{NetlinkKind, Outcome, Prepared, Writable};
use crate::message::{HEADER, Message, Part};
use crate::reading::Reading;
use crate::socket::Netlink;

/// Offset of the attributes behind `ifinfomsg`.
const ATTRIBUTES: u32 = HEADER as u32 + 16;

/// Advice for a kernel that cannot create a vxlan device, the only kind of device that we create.
const NO_VXLAN: &str = "; this kernel has no vxlan: run modprobe vxlan, install the kernel's package of modules, or use \
                        the backend host-gw, which needs no module";

impl NetlinkKind for Link {
    const NOTIFICATIONS: Option<Notifications> = Some(Notifications {
        name: Self::NAME,
        groups: &[libc::RTNLGRP_LINK],
        types: [libc::RTM_NEWLINK, libc::RTM_DELLINK],
        own_writes: OwnWrites::Reported,
        selection: Some(selection),
    });

    /// Picks the devices with our names, which were read before.
    fn read(reading: &mut Reading<'_>, owned: &Owned) -> Result<Vec<Self>, Error> {
        Ok(owned.links.iter().filter_map(|name| reading.devices.row(*name)).collect())
    }
}

impl Writable for Link {
    fn stands_alone(&self, _: Verb) -> bool {
        true
    }

    fn prepare(&self, verb: Verb, devices: &Devices) -> Result<Prepared<'_>, LinkName> {
        Ok(match verb {
            Verb::Add => Prepared::Send(add(self, devices)?),
            Verb::Replace => {
                let messages = replace(self, devices)?;
                Prepared::alone(|netlink| netlink.ask_each(messages))
            }
            Verb::Recreate | Verb::Delete => Prepared::Send(delete(self.name)),
        })
    }

    /// Compares a device that was to be created with the existing one. Without one, a device of another name has its VNI
    /// and port.
    fn refused(&self, _: Verb, cause: Cause, netlink: &mut Netlink, _: &Devices) -> Result<Outcome, Cause> {
        if cause.errno() != Some(libc::EEXIST) {
            return Err(cause);
        }
        match devices::read(netlink).map_err(|error| error.cause)?.row(self.name) {
            None => Err(cause),
            Some(there) if there == (Link { up: there.up, ..self.clone() }) => Ok(Outcome::Already),
            Some(there) => Err(Cause::Differs(there.to_string().into())),
        }
    }

    fn advice(&self, verb: Verb, errno: i32, devices: &Devices) -> Option<String> {
        match (&self.kind, errno) {
            (_, libc::EOPNOTSUPP) if verb == Verb::Add => Some(NO_VXLAN.into()),
            (LinkKind::Vxlan(vxlan), libc::EADDRINUSE | libc::EEXIST) => {
                Some(name_port_owner(self.name, vxlan, errno, devices))
            }
            _ => None,
        }
    }
}

/// Administrative state of the link of that name.
impl Writable for LinkName {
    fn stands_alone(&self, _: Verb) -> bool {
        true
    }

    fn prepare(&self, verb: Verb, _: &Devices) -> Result<Prepared<'_>, LinkName> {
        Ok(Prepared::Send(set_up(*self, !verb.deletes())))
    }

    fn advice(&self, _: Verb, errno: i32, devices: &Devices) -> Option<String> {
        let vxlan = devices.vxlan(*self).filter(|_| errno == libc::EADDRINUSE)?;
        Some(name_port_owner(*self, vxlan, errno, devices))
    }
}

/// Names the device or process that has the UDP port of a vxlan device.
fn name_port_owner(name: LinkName, ours: &Vxlan, errno: i32, devices: &Devices) -> String {
    let port = ours.port;
    let others: Vec<LinkName> = devices.with_port(port).filter(|other| *other != name).collect();
    // `EEXIST` concerns the VNI, too: a device that shares only the port may stay.
    let same_vni = |other: &LinkName| devices.vxlan(*other).is_some_and(|it| it.vni == ours.vni);
    let same: Vec<LinkName> = others.iter().copied().filter(same_vni).collect();
    let blamed = if errno == libc::EEXIST && !same.is_empty() { same } else { others };
    let Some(first) = blamed.first() else {
        if let Some(other) = devices.with_some_port().next() {
            return format!(
                "; UDP port {port} is in use, but not by a vxlan device of this network namespace: the device {other} may \
                 have it (ip -d link show {other}), or a process (ss -uanp 'sport = {port}' names it). Remove or stop it, or \
                 choose another Port in the network config"
            );
        }
        return format!(
            "; UDP port {port} is in use, but not by a device of this network namespace: a process has it (ss -uanp \
             'sport = {port}' names it), or a vxlan device in another network namespace. Stop or remove it, or choose \
             another Port in the network config"
        );
    };
    let names = blamed.iter().map(LinkName::as_str).collect::<Vec<_>>().join(", ");
    format!(
        "; the vxlan device {names} has UDP port {port} already: remove it if nothing needs it (ip link del {first}), or \
         choose another Port or VNI in the network config"
    )
}

/// Returns the name of the link that a notification is about, if it is about a link.
pub(crate) fn named_in(part: Part<'_>) -> Option<LinkName> {
    if ![libc::RTM_NEWLINK, libc::RTM_DELLINK].contains(&part.kind) {
        return None;
    }
    part.body.attributes(16).find(|attribute| attribute.kind == IFLA_IFNAME)?.text().parse().ok()
}

/// Accepts the messages about our links and the uplink, by index or by name. A device that was created again has a
/// new index.
fn selection(interest: &Interest) -> Vec<SockFilter> {
    let mut body = by_index(interest.devices());
    body.pop();
    body.extend(by_name(&interest.names));
    body
}

/// Compares the name word by word, with its closing NUL and the padding behind it.
fn by_name(names: &[LinkName]) -> Vec<SockFilter> {
    let mut body = Vec::from(find(ATTRIBUTES, IFLA_IFNAME));
    for name in names {
        let mut bytes = [name.as_str().as_bytes(), b"\0"].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let words = bytes.len() / 4;
        for (place, word) in bytes.chunks_exact(4).enumerate() {
            let rest = 2 * (words - place - 1) + 1;
            body.push(load(BPF_W | BPF_IND, 4 + 4 * place as u32));
            body.push(equal(word.iter().fold(0, |all, byte| all << 8 | u32::from(*byte)), 0, rest as u8));
        }
        body.push(ACCEPT);
    }
    body.push(DROP);
    body
}

/// Creates the device as flannel does (flannel-compat 6.1), down. Fails with the uplink's name if that device does not
/// exist.
pub(crate) fn add(link: &Link, devices: &Devices) -> Result<Message, LinkName> {
    let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &[&[0; 16]]);
    message.text(IFLA_IFNAME, link.name.as_str()).put(IFLA_ADDRESS, &link.mac.0);
    message.u32(IFLA_MTU, link.mtu).u32(libc::IFLA_TXQLEN, 0);
    match &link.kind {
        LinkKind::Vxlan(vxlan) => {
            let uplink = vxlan.uplink.map(|name| devices.need(name)).transpose()?;
            message.nest(IFLA_LINKINFO, |info| {
                info.text(IFLA_INFO_KIND, "vxlan").nest(IFLA_INFO_DATA, |data| {
                    in_place(data, vxlan).u32(IFLA_VXLAN_ID, vxlan.vni);
                    data.u8(IFLA_VXLAN_TTL, 0).u8(IFLA_VXLAN_TOS, 0);
                    data.put(IFLA_VXLAN_PORT, &vxlan.port.to_be_bytes());
                    if let Some(index) = uplink {
                        data.u32(IFLA_VXLAN_LINK, index);
                    }
                    if vxlan.gbp {
                        data.put(IFLA_VXLAN_GBP, &[]);
                    }
                });
            });
        }
        LinkKind::Other(kind) => _ = message.nest(IFLA_LINKINFO, |info| _ = info.text(IFLA_INFO_KIND, kind)),
    }
    Ok(message)
}

/// Returns up to two messages that change an existing device in place. A MAC that is equal is not set again, since that
/// flushes the device's neighbours. vxlan refuses an MTU beside attributes of its own, so these have a message of their
/// own. Fails with the device's name if it does not exist.
pub(crate) fn replace(link: &Link, devices: &Devices) -> Result<Vec<Message>, LinkName> {
    let have = devices.row(link.name).ok_or(link.name)?;
    let message = || {
        let mut message = Message::new(libc::RTM_NEWLINK, 0, &[&[0; 16]]);
        message.text(IFLA_IFNAME, link.name.as_str());
        message
    };
    let mut common = message();
    common.u32(IFLA_MTU, link.mtu);
    if have.mac != link.mac {
        common.put(IFLA_ADDRESS, &link.mac.0);
    }
    let mut messages = vec![common];
    if let LinkKind::Vxlan(vxlan) = &link.kind
        && have.kind != link.kind
    {
        let mut own = message();
        own.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "vxlan").nest(IFLA_INFO_DATA, |data| _ = in_place(data, vxlan));
        });
        messages.push(own);
    }
    Ok(messages)
}

fn in_place<'a>(data: &'a mut Message, vxlan: &Vxlan) -> &'a mut Message {
    let local = if vxlan.local.is_ipv4() { IFLA_VXLAN_LOCAL } else { IFLA_VXLAN_LOCAL6 };
    data.ip(local, vxlan.local).u8(IFLA_VXLAN_LEARNING, vxlan.learning.into())
}

/// Sets only the administrative state.
pub(crate) fn set_up(name: LinkName, up: bool) -> Message {
    let change = libc::IFF_UP as u32;
    let flags = if up { change } else { 0 };
    let header: [&[u8]; 3] = [&[0; 8], &flags.to_ne_bytes(), &change.to_ne_bytes()];
    let mut message = Message::new(libc::RTM_NEWLINK, 0, &header);
    message.text(IFLA_IFNAME, name.as_str());
    message
}

pub(crate) fn delete(name: LinkName) -> Message {
    let mut message = Message::new(libc::RTM_DELLINK, 0, &[&[0; 16]]);
    message.text(IFLA_IFNAME, name.as_str());
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::parts;

    #[test]
    fn a_geneve_device_may_have_the_port() {
        let mut message = Message::new(libc::RTM_NEWLINK, 0, &[&[0; 4], &7_u32.to_ne_bytes(), &[0; 8]]);
        message.text(IFLA_IFNAME, "gen0").nest(IFLA_LINKINFO, |info| _ = info.text(IFLA_INFO_KIND, "geneve"));
        let bytes = message.seal(1, false).to_vec();
        let devices = Devices::new(parts(&bytes).filter_map(devices::decode).collect());
        let local = [192, 0, 2, 1].into();
        let ours = Vxlan { vni: 1, local, uplink: None, port: 8472, learning: false, gbp: false };
        let reported =
            |devices| name_port_owner("flannel.1".parse().unwrap(), &ours, libc::EADDRINUSE, devices);
        let text = reported(&devices);
        assert!(text.contains("the device gen0 may have it (ip -d link show gen0)"), "{text}");
        let text = reported(&Devices::default());
        assert!(text.contains("not by a device of this network namespace"), "{text}");
    }
}
