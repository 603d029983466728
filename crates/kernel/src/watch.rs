//! Reports that the kernel's network objects changed. An event is a hint to read again and carries no facts. The filter
//! drops foreign changes inside the kernel, so that pods that come and go wake no thread.

use std::fmt;
use std::io;
use std::sync::Arc;

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use plan::LinkName;
use socket2::SockRef;

use crate::Kernel;
use crate::echo::Echoes;
use crate::error::{Cause, Error};
use crate::filter::Interest;
use crate::socket::{RECEIVE_BUFFER, receive};
use crate::wire::{Part, parts};
use crate::{link, nexthop};

const GROUPS: [u32; 9] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    // Neighbours of all families, with AF_BRIDGE: the FDB.
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_NEXTHOP,
];

/// Size in bytes of the buffer for one datagram; larger than any single notification.
const DATAGRAM: usize = 32 * 1024;

/// Kind of object that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Link,
    Address,
    Route,
    /// A neighbour or an FDB entry.
    Neighbour,
    Nexthop,
    Rule,
    /// A traffic rule of nftables or iptables.
    Firewall,
    /// Lost notifications: there were more than the socket could hold.
    Overrun,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Link => "link",
            Self::Address => "address",
            Self::Route => "route",
            Self::Neighbour => "neighbour",
            Self::Nexthop => "nexthop",
            Self::Rule => "rule",
            Self::Firewall => "firewall",
            Self::Overrun => "overrun",
        })
    }
}

/// A change in the kernel: a hint to read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: Kind,
    /// Name of the device, for a link event.
    pub link: Option<LinkName>,
}

/// The monitor socket. It must be open before the first dump, so that no change is missed between the two.
pub struct Watch {
    socket: Arc<Socket>,
    datagram: Vec<u8>,
    echoes: Echoes,
}

/// Handle that sets the filter of a [`Watch`], also while another thread waits on it.
#[derive(Clone)]
pub struct Filter(Arc<Socket>);

impl Watch {
    /// Opens the monitor socket. Until a filter is set it reports every change, except for FDB entries that `kernel`
    /// writes. Fails if the socket cannot be opened or joined to its groups.
    pub fn open(kernel: &Kernel) -> Result<Self, Error> {
        Self::with_buffer(RECEIVE_BUFFER, kernel.echoes.clone())
            .map_err(|error| Error::new("open the monitor socket", Cause::from(&error)))
    }

    fn with_buffer(bytes: usize, echoes: Echoes) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        SockRef::from(&socket).set_recv_buffer_size(bytes)?;
        GROUPS.iter().try_for_each(|group| socket.add_membership(*group))?;
        Ok(Self { socket: Arc::new(socket), datagram: Vec::with_capacity(DATAGRAM), echoes })
    }

    /// Returns the handle for the thread that knows what is of interest.
    pub fn filter(&self) -> Filter {
        Filter(Arc::clone(&self.socket))
    }

    /// Waits for the next change, without a time limit. Fails if the socket fails; an overrun is an event, not an
    /// error.
    pub fn wait(&mut self) -> Result<Event, Error> {
        loop {
            match receive(&self.socket, &mut self.datagram) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Ok(Event { kind: Kind::Overrun, link: None });
                }
                Err(error) => return Err(Error::new("wait for changes", Cause::from(&error))),
            }
            let news = parts(&self.datagram).filter(|part| !self.echoes.take(*part));
            if let Some(event) = news.filter_map(event).next() {
                return Ok(event);
            }
        }
    }
}

impl Filter {
    /// Replaces the filter in one step. Fails if the kernel refuses the program.
    pub fn set(&self, interest: &Interest) -> Result<(), Error> {
        let attached = SockRef::from(&*self.0).attach_filter(&interest.program());
        attached.map_err(|error| Error::new("set the filter of the monitor socket", Cause::from(&error)))
    }
}

pub(crate) fn event(part: Part<'_>) -> Option<Event> {
    let kind = match part.kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => Kind::Link,
        libc::RTM_NEWADDR | libc::RTM_DELADDR => Kind::Address,
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => Kind::Route,
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => Kind::Neighbour,
        nexthop::RTM_NEWNEXTHOP | nexthop::RTM_DELNEXTHOP => Kind::Nexthop,
        libc::RTM_NEWRULE | libc::RTM_DELRULE => Kind::Rule,
        _ => return None,
    };
    Some(Event { kind, link: if kind == Kind::Link { link::name(part) } else { None } })
}
