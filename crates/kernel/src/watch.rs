//! Reports that the kernel's network objects changed. An event is a hint to read again and carries no facts. The filter
//! drops foreign changes inside the kernel, so that pods that come and go wake no thread.

use std::fmt;
use std::io;
use std::sync::Arc;

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use plan::LinkName;
use socket2::SockRef;

use crate::echo::Echoes;
use crate::error::{Cause, Error};
use crate::filter::{Interest, Notifications};
use crate::handle::Kernel;
use crate::message::{Part, parts};
use crate::socket::{RECEIVE_BUFFER, receive};
use crate::{kind, link, sysctl};

/// Size in bytes of the buffer for one datagram; larger than any single notification.
const DATAGRAM: usize = 32 * 1024;

/// Subject of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// Objects of the kind with this name, such as `route`. FDB entries count as neighbours.
    Object(&'static str),
    /// Traffic rules of nftables or iptables.
    Firewall,
    /// Lost notifications: there were more than the socket could hold.
    Overrun,
}

impl Change {
    /// Returns the change of objects of that kind.
    pub const fn of<K: plan::Kind>() -> Self {
        Self::Object(K::NAME)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Object(name) => name,
            Self::Firewall => "firewall",
            Self::Overrun => "overrun",
        })
    }
}

/// A change in the kernel: a hint to read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub change: Change,
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
        notifications().flat_map(|kind| kind.groups).try_for_each(|group| socket.add_membership(*group))?;
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
                    return Ok(Event { change: Change::Overrun, link: None });
                }
                Err(error) => return Err(Error::new("wait for changes", Cause::from(&error))),
            }
            let messages = parts(&self.datagram).filter(|part| !self.echoes.take(*part));
            if let Some(event) = messages.filter_map(event).next() {
                return Ok(event);
            }
        }
    }
}

impl Filter {
    /// Replaces the filter in one step. Fails if the kernel refuses the program.
    pub fn set(&self, interest: &Interest) -> Result<(), Error> {
        let notifications: Vec<Notifications> = notifications().collect();
        let attached = SockRef::from(&*self.0).attach_filter(&interest.program(&notifications));
        attached.map_err(|error| Error::new("set the filter of the monitor socket", Cause::from(&error)))
    }
}

/// Returns the notifications of all kinds of objects, and of sysctls.
fn notifications() -> impl Iterator<Item = Notifications> {
    kind::notifications().chain([sysctl::NOTIFICATIONS])
}

pub(crate) fn event(part: Part<'_>) -> Option<Event> {
    let kind = notifications().find(|kind| kind.types.contains(&part.kind))?;
    Some(Event { change: Change::Object(kind.name), link: link::named_in(part) })
}
