//! Reports changes of traffic rules that concern us. A report is a hint to read again and carries no facts. Changes of
//! the thousands of rules of others are not reported.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};

use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use plan::Family;
use plan::state::IptablesTable;
use socket2::SockRef;

use super::netlink::{SUBSYSTEM, TABLE, attributes, number};
use super::passage::WatchedChains;
use crate::error::{Cause, Error};
use crate::message::{Part, parts};
use crate::socket::{RECEIVE_BUFFER, receive};

/// Multicast group of nf_tables (`NFNLGRP_NFTABLES`).
const GROUP: u32 = 7;

/// Size in bytes of the buffer for one datagram; larger than any single notification.
const DATAGRAM: usize = 64 * 1024;

/// Protocol family `NFPROTO_INET`.
const INET: u8 = 1;

/// The monitor socket of nf_tables. It must be open before the first dump, so that no change is missed between the two.
pub struct FirewallWatch {
    socket: Socket,
    datagram: Vec<u8>,
    /// Netlink port by which reconcile passes change elements; changes of that port are not reported.
    own_port: Arc<AtomicU32>,
    watched: WatchedChains,
}

impl FirewallWatch {
    /// Opens the monitor socket. Fails if the kernel has no nf_tables.
    pub(crate) fn open(own_port: Arc<AtomicU32>, watched: WatchedChains) -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER)?;
            socket.add_membership(GROUP)?;
            Ok(socket)
        };
        let socket = open().map_err(|error: io::Error| {
            Error::new("open the monitor socket of nf_tables", Cause::from(&error))
        })?;
        Ok(Self { socket, datagram: Vec::with_capacity(DATAGRAM), own_port, watched })
    }

    /// Waits for the next change, without a time limit. An overrun of the socket counts as one change. Fails if the
    /// socket fails.
    pub fn wait(&mut self) -> Result<(), Error> {
        loop {
            match receive(&self.socket, &mut self.datagram) {
                Ok(()) if self.is_news() => return Ok(()),
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Err(error) => {
                    return Err(Error::new("wait for changes of traffic rules", Cause::from(&error)));
                }
            }
        }
    }

    fn is_news(&self) -> bool {
        let own_port = self.own_port.load(Ordering::Acquire);
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        parts(&self.datagram)
            .any(|part| part.port != own_port && (concerns(part) || is_watched(part, &watched)))
    }
}

/// Returns true if the message is about a chain or set that packets of pods meet, or may meet soon.
fn is_watched(part: Part<'_>, watched: &BTreeSet<(u8, Box<str>, Box<str>)>) -> bool {
    const HOOK: u16 = 4;
    const SET_NAME: u16 = 2;
    let text = |kind| {
        let found = attributes(part).find(|attribute| attribute.kind == kind);
        found.map_or("", |attribute| attribute.text())
    };
    let protocol = part.body.u8(0);
    let has = |name: &str| watched.contains(&(protocol, text(TABLE).into(), name.into()));
    match About::of(part) {
        Some(About::Table) => {
            watched.iter().any(|(family, table, _)| *family == protocol && **table == *text(TABLE))
        }
        Some(About::Chain(kind)) => has(text(kind)) || is_base(part, HOOK),
        Some(About::Rule(kind)) => has(text(kind)),
        Some(About::Set) => has(text(SET_NAME)),
        None => false,
    }
}

/// Returns true if the chain has a hook, on which packets may meet it.
fn is_base(part: Part<'_>, kind: u16) -> bool {
    attributes(part).any(|attribute| attribute.kind == kind)
}

/// Kind of object that a message is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Table,
    /// Chain whose name is in this attribute.
    Chain(u16),
    /// Rule of the chain that this attribute names.
    Rule(u16),
    Set,
}

impl About {
    /// Classifies a message by its type, `NFT_MSG_*`. Returns `None` for types that do not matter here.
    fn of(part: Part<'_>) -> Option<Self> {
        match part.kind.checked_sub(SUBSYSTEM << 8)? {
            0 | 2 => Some(Self::Table),
            3 | 5 => Some(Self::Chain(3)),
            6 | 8 => Some(Self::Rule(2)),
            9 | 11 | 12 | 14 => Some(Self::Set),
            _ => None,
        }
    }
}

fn concerns(part: Part<'_>) -> bool {
    let Some(about) = About::of(part) else {
        return false;
    };
    let text = |kind| {
        let found = attributes(part).find(|attribute| attribute.kind == kind);
        found.map_or("", |attribute| attribute.text())
    };
    let (protocol, table) = (part.body.u8(0), text(TABLE));
    if protocol == INET {
        return about == About::Table && table == "firewalld";
    }
    let Some(family) = Family::ALL.into_iter().find(|family| number(*family) == protocol) else {
        return false;
    };
    if table == family.nft_table() {
        return true;
    }
    let Some(table) = IptablesTable::ALL.into_iter().find(|known| known.to_string() == table) else {
        return false;
    };
    match about {
        About::Table => true,
        About::Chain(kind) | About::Rule(kind) => [table.hook(), table.chain()].contains(&text(kind)),
        About::Set => false,
    }
}

#[cfg(fuzzing)]
pub(super) fn fuzz(datagram: &[u8]) {
    let watched = [(2, "filter".into(), "FORWARD".into())].into();
    for part in parts(datagram) {
        let _ = (concerns(part), is_watched(part, &watched));
    }
}
