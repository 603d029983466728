//! Files below `/proc/sys`, read and written one at a time, and the settings that netlink can write instead.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use libc::{BPF_IND, BPF_W};
use plan::state::Sysctl;
use plan::{Kind, LinkName, Verb};
use socket2::SockFilter;

use crate::devices::Devices;
use crate::error::Cause;
use crate::filter::{DROP, Interest, Notifications, OwnWrites, accept_if, find, load};
use crate::kind::{Prepared, Writable};
use crate::message::{HEADER, Message};

/// Directory of all sysctls that are written.
pub const SYSCTLS: &str = "/proc/sys/net";

/// Constants of linux/if_link.h and linux/ip.h.
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_FORWARDING: u16 = 1;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;

/// `RTM_DELNETCONF`, `NETCONFA_IFINDEX` and `NETCONFA_IFINDEX_ALL` of linux/netconf.h.
const DELETED: u16 = 81;
const IFINDEX: u16 = 1;
const ALL_DEVICES: u32 = u32::MAX;
/// Offset of the attributes behind `netconfmsg`, which is one byte and padding.
const ATTRIBUTES: u32 = HEADER as u32 + 4;

/// Notifications about forwarding and `rp_filter` of a device, or of all. The kernel sends none about other sysctls.
pub(crate) const NOTIFICATIONS: Notifications = Notifications {
    name: Sysctl::NAME,
    groups: &[libc::RTNLGRP_IPV4_NETCONF, libc::RTNLGRP_IPV6_NETCONF],
    types: [libc::RTM_NEWNETCONF, DELETED],
    own_writes: OwnWrites::Reported,
    selection: Some(selection),
};

/// Accepts the messages about our links, the uplink, the pods' devices and all devices at once.
fn selection(interest: &Interest) -> Vec<SockFilter> {
    let mut body = Vec::from(find(ATTRIBUTES, IFINDEX));
    body.push(load(BPF_W | BPF_IND, 4));
    let indexes = interest.devices().chain(interest.pods.iter().copied()).chain([ALL_DEVICES]);
    indexes.for_each(|index| body.extend(accept_if(index.to_be())));
    body.push(DROP);
    body
}

fn file(path: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(path)
}

/// Reads a sysctl. Returns `None` if its file does not exist, as without its device or module, or cannot be read.
pub(crate) fn read(path: &str) -> Option<Sysctl> {
    let value = fs::read_to_string(file(path)).ok()?;
    Some(Sysctl { path: path.into(), value: value.trim().into() })
}

/// A sysctl is written whatever the verb: it cannot be absent.
impl Writable for Sysctl {
    fn stands_alone(&self, _: Verb) -> bool {
        true
    }

    /// Writes the file. If it is read-only, as in containers, netlink sets some settings of a device.
    fn prepare<'a>(&'a self, _: Verb, devices: &'a Devices) -> Result<Prepared<'a>, LinkName> {
        Ok(Prepared::alone(move |netlink| match write(self) {
            Err(cause) if cause.is_denial() => match message(self, devices) {
                Some(message) => netlink.ask_each([message]),
                None => Err(cause),
            },
            other => other,
        }))
    }
}

fn write(row: &Sysctl) -> Result<(), Cause> {
    // `fs::write` would try to create the file.
    let file = fs::File::options().write(true).open(file(&row.path));
    file.and_then(|mut file| file.write_all(row.value.as_bytes())).map_err(|error| Cause::from(&error))
}

/// Returns a message that writes the sysctl by netlink. `None` unless it is `rp_filter` or `forwarding` of IPv4 for an
/// existing device. Netlink only shows the settings of IPv6.
fn message(row: &Sysctl, devices: &Devices) -> Option<Message> {
    let (device, setting) = row.path.strip_prefix("net/ipv4/conf/")?.rsplit_once('/')?;
    let setting = match setting {
        "rp_filter" => IPV4_DEVCONF_RP_FILTER,
        "forwarding" => IPV4_DEVCONF_FORWARDING,
        _ => return None,
    };
    let index = devices.index(device.parse().ok()?)?;
    let value = row.value.parse().ok()?;
    let mut message = Message::new(libc::RTM_SETLINK, 0, &[&[0; 4], &index.to_ne_bytes(), &[0; 8]]);
    message.nest(IFLA_AF_SPEC, |families| {
        families.nest(libc::AF_INET as u16, |ipv4| {
            ipv4.nest(IFLA_INET_CONF, |settings| _ = settings.u32(setting, value));
        });
    });
    Some(message)
}
