//! Hears that traffic rules changed that concern us: hints to look again, which carry no facts. The thousands of rules that
//! others write wake nobody. It knows no rule.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use plan::firewall::IptablesTable;
use plan::input::Family;
use socket2::SockRef;

use super::netlink::{SUBSYSTEM, TABLE, attributes, number};
use crate::Kernel;
use crate::error::{Cause, Error};
use crate::socket::{RECEIVE_BUFFER, receive};
use crate::wire::{Part, parts};

/// `NFNLGRP_NFTABLES`
const GROUP: u32 = 7;

/// Larger than any single notification.
const DATAGRAM: usize = 64 * 1024;

/// `NFPROTO_INET`
const INET: u8 = 1;

/// The monitor socket of nf_tables. Open it before the first dump, so that nothing falls between the two.
pub struct FirewallWatch {
    socket: Socket,
    datagram: Vec<u8>,
    /// That the rounds write by; what they write without a tool is no news to them.
    own_port: Arc<AtomicU32>,
}

impl FirewallWatch {
    /// Fails where the kernel has no nf_tables.
    pub fn open(kernel: &Kernel) -> Result<Self, Error> {
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
        Ok(Self { socket, datagram: Vec::with_capacity(DATAGRAM), own_port: kernel.firewall.nft_port() })
    }

    /// Waits for the next change. More changes than the socket can hold are one.
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
}

impl FirewallWatch {
    fn is_news(&self) -> bool {
        let own_port = self.own_port.load(Ordering::Acquire);
        parts(&self.datagram).any(|part| part.port != own_port && concerns(part))
    }
}

/// What a message is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Table,
    /// Its name is in that attribute.
    Chain(u16),
    /// Of the chain named in that attribute.
    Rule(u16),
    Set,
}

impl About {
    /// `NFT_MSG_*`; what is left out concerns nobody here.
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
