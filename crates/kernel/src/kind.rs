//! Kinds of kernel objects that rtnetlink(7) reads, writes and reports. Each implements [`NetlinkKind`] in a file of its own.
//! `plan::for_each_netlink_kind!` lists the kinds; the functions below are loops over that list.

use plan::owned::Owned;
use plan::{LinkName, Object, State, Verb};

use crate::devices::Devices;
use crate::error::{Cause, Error};
use crate::filter::Notifications;
use crate::message::Message;
use crate::reading::Reading;
use crate::socket::Netlink;

/// Kind of objects of rtnetlink.
pub(crate) trait NetlinkKind: plan::Kind + Writable {
    /// Notifications about objects of the kind. `None` if the notifications of another kind include them.
    const NOTIFICATIONS: Option<Notifications>;

    /// Reads the rows that may be ours, and leaves in `reading` what other kinds need to know of the rest. Fails if a dump
    /// fails or changes during each reading.
    fn read(reading: &mut Reading<'_>, owned: &Owned) -> Result<Vec<Self>, Error>;
}

/// Object of an op that is written alone: a row of rtnetlink, a sysctl, or the state of a link.
pub(crate) trait Writable {
    /// Returns true if the op is sent alone: later ops depend on it, or one request is not enough.
    fn stands_alone(&self, _verb: Verb) -> bool {
        false
    }

    /// Returns the requests that carry out an op. Fails with the name of a device that does not exist.
    fn prepare<'a>(&'a self, verb: Verb, devices: &'a Devices) -> Result<Prepared<'a>, LinkName>;

    /// Judges the refusal of an op, unless it says that the object to delete does not exist. Fails with the cause if the
    /// op has failed.
    fn refused(
        &self,
        _verb: Verb,
        cause: Cause,
        _netlink: &mut Netlink,
        _devices: &Devices,
    ) -> Result<Outcome, Cause> {
        Err(cause)
    }

    /// Returns advice on that error, in place of the general one.
    fn advice(&self, _verb: Verb, _errno: i32, _devices: &Devices) -> Option<String> {
        None
    }
}

/// Requests that are sent through the socket one after the other.
type Requests<'a> = Box<dyn FnOnce(&mut Netlink) -> Result<(), Cause> + 'a>;

/// Requests that carry out an op.
pub(crate) enum Prepared<'a> {
    /// Single request, which may share a send with others.
    Send(Message),
    /// Several requests, or none. The op must stand alone.
    Alone(Requests<'a>),
}

impl<'a> Prepared<'a> {
    pub(crate) fn alone(change: impl FnOnce(&mut Netlink) -> Result<(), Cause> + 'a) -> Self {
        Self::Alone(Box::new(change))
    }
}

/// Outcome of one op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Carried out.
    Done,
    /// Unnecessary: the object to create exists and is equal.
    Already,
    /// Unnecessary: the object to delete does not exist.
    Gone,
    /// Failed, as far as the kernel reports.
    Failed(Error),
}

macro_rules! loops {
    ($($table:ident: $variant:ident($payload:ty) of $row:ty,)*) => {
        /// Reads the rows of all kinds, in the order of the registry.
        pub(crate) fn read(reading: &mut Reading<'_>, owned: &Owned) -> Result<State, Error> {
            Ok(State { $($table: <$row>::read(reading, owned)?.into(),)* ..State::default() })
        }

        /// Returns the object of an op. `None` for a traffic rule, which is written in a transaction.
        pub(crate) fn writable(object: &Object) -> Option<&dyn Writable> {
            match object {
                $(Object::$variant(row) => {
                    let row: &$row = row;
                    Some(row)
                })*
                Object::LinkUp(name) => Some(name),
                Object::Sysctl(setting) => Some(&setting.row),
                Object::NftTable(_) | Object::NftChain(_) | Object::NftElement(_) | Object::Iptables(_) => None,
            }
        }

        /// Notifications of all kinds.
        pub(crate) fn notifications() -> impl Iterator<Item = Notifications> {
            [$(<$row>::NOTIFICATIONS),*].into_iter().flatten()
        }
    };
}
plan::for_each_netlink_kind!(loops);
