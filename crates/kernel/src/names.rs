//! Abstract unix addresses of this network namespace, and the users whose processes hold them (sock_diag(7)). This
//! module binds no address.

use std::fs::File;
use std::io::{BufRead, BufReader};

use crate::error::{Cause, Error};
use crate::message::{Message, Part};
use crate::socket::Netlink;

/// Constants of linux/sock_diag.h and linux/unix_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const UDIAG_SHOW_NAME: u32 = 1;
const UDIAG_SHOW_UID: u32 = 0x40;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_UID: u16 = 7;
/// Length of `struct unix_diag_msg`.
const MESSAGE: usize = 16;

/// An abstract address in use, such as `twill 4711 VNI 1 #5f3a` of uid 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbstractName {
    /// The name without its leading NUL byte.
    pub name: String,
    /// Owner of the socket. `None` if the kernel does not say, as before Linux 5.3 and without unix_diag.
    pub uid: Option<u32>,
}

/// Returns all abstract addresses that begin with `prefix`. Addresses that are not UTF-8 are left out. Without
/// unix_diag the owners are missing. Fails if the kernel does not answer, or if the list changed during each reading.
pub fn abstract_names(prefix: &str) -> Result<Vec<AbstractName>, Error> {
    match by_netlink(prefix) {
        Err(Cause::Refused { .. }) => Ok(listed(prefix)),
        all => all.map_err(|cause| Error::new("list abstract unix addresses", cause)),
    }
}

/// Reads the addresses with their owners. Other programs may hold hundreds of thousands, of which none is kept.
fn by_netlink(prefix: &str) -> Result<Vec<AbstractName>, Cause> {
    let show = (UDIAG_SHOW_NAME | UDIAG_SHOW_UID).to_ne_bytes();
    let (family, every_state) = ([libc::AF_UNIX as u8, 0, 0, 0], u32::MAX.to_ne_bytes());
    let header: [&[u8]; 5] = [&family, &every_state, &[0; 4], &show, &[0; 8]];
    let request = Message::new(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, &header);
    Netlink::sock_diag()?.dump(request, |all: &mut Vec<_>, part| {
        all.extend(name_in(part).filter(|held| held.name.starts_with(prefix)));
    })
}

/// Returns the address that one message of the answer names.
pub(crate) fn name_in(part: Part<'_>) -> Option<AbstractName> {
    let (mut name, mut uid) = (None, None);
    for attribute in part.body.attributes(MESSAGE) {
        match attribute.kind {
            UNIX_DIAG_NAME => name = attribute.value.0.strip_prefix(&[0]),
            UNIX_DIAG_UID => uid = Some(attribute.u32()),
            _ => {}
        }
    }
    Some(AbstractName { name: str::from_utf8(name?).ok()?.into(), uid })
}

/// Reads the addresses without their owners. A line of `/proc/net/unix` ends with the address, an `@` in place of the
/// NUL byte.
fn listed(prefix: &str) -> Vec<AbstractName> {
    let lines = File::open("/proc/thread-self/net/unix").map(|file| BufReader::new(file).split(b'\n'));
    let lines = lines.into_iter().flatten().map_while(Result::ok);
    let names = lines.flat_map(|line| listing(&String::from_utf8_lossy(&line)));
    names.filter(|held| held.name.starts_with(prefix)).collect()
}

/// The addresses in the text of `/proc/net/unix`.
pub(crate) fn listing(text: &str) -> Vec<AbstractName> {
    let names = text.lines().filter_map(|line| line.split_once(" @"));
    names.map(|(_, name)| AbstractName { name: name.into(), uid: None }).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};

    use super::*;

    #[test]
    fn abstract_sockets_are_listed_and_sock_diag_adds_the_owner() {
        let address = |name: &str| {
            SocketAddr::from_abstract_name(format!("names {} {name}", std::process::id())).unwrap()
        };
        let _datagram = UnixDatagram::bind_addr(&address("one")).unwrap();
        let _stream = UnixListener::bind_addr(&address("two words")).unwrap();
        let prefix = format!("names {} ", std::process::id());
        let own = fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own)).unwrap();
        let sorted = |mut all: Vec<AbstractName>| {
            all.retain(|held| held.name.starts_with(&prefix));
            all.sort_by(|a, b| a.name.cmp(&b.name));
            all
        };
        let expected = |uid: Option<u32>| {
            ["one", "two words"].map(|name| AbstractName { name: format!("{prefix}{name}"), uid })
        };
        assert_eq!(sorted(abstract_names(&prefix).unwrap()), expected(Some(own)));
        assert_eq!(sorted(listed(&prefix)), expected(None));
    }

    #[test]
    fn addresses_of_others_take_no_room() {
        let names = (0..300).map(|number| format!("others of {} {number}", std::process::id()));
        let addresses = names.map(|name| SocketAddr::from_abstract_name(name).unwrap());
        let _others: Vec<_> = addresses.map(|address| UnixDatagram::bind_addr(&address).unwrap()).collect();
        let prefix = format!("ours of {} ", std::process::id());
        for ours in [abstract_names(&prefix).unwrap(), listed(&prefix)] {
            assert!(ours.capacity() < 300, "{}", ours.capacity());
        }
    }
}
