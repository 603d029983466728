//! Files below `/proc/sys`: read and written as they are, one at a time, and what netlink can write of them.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use plan::state::Sysctl;

use crate::error::Cause;
use crate::link::Devices;
use crate::wire::Message;

/// Below it is every sysctl that is written.
pub const SYSCTLS: &str = "/proc/sys/net";

/// Of linux/if_link.h and linux/ip.h.
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_FORWARDING: u16 = 1;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;

fn file(path: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(path)
}

/// `None` where there is no such file: its device or module is not there.
pub(crate) fn read(path: &str) -> Option<Sysctl> {
    let value = fs::read_to_string(file(path)).ok()?;
    Some(Sysctl { path: path.into(), value: value.trim().into() })
}

pub(crate) fn write(row: &Sysctl) -> Result<(), Cause> {
    // Not fs::write, which would try to create the file.
    let file = fs::File::options().write(true).open(file(&row.path));
    file.and_then(|mut file| file.write_all(row.value.as_bytes())).map_err(|error| Cause::from(&error))
}

/// The same by netlink: only `rp_filter` and `forwarding` of a device that is there. IPv6's settings netlink only shows.
pub(crate) fn message(row: &Sysctl, devices: &Devices) -> Option<Message> {
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
