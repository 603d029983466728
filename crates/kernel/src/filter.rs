//! Filter of the monitor stream, as a classic BPF program: a message that does not concern us wakes no thread. It
//! compares the socket, and values that each kind of object selects; it does not interpret a message.

use libc::{BPF_ABS, BPF_H, BPF_IMM, BPF_JA, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_LDX, BPF_MISC};
use libc::{BPF_RET, BPF_TAX, BPF_W};
use plan::LinkName;
use plan::owned::Owned;
use plan::state::MAIN_TABLE;
use socket2::SockFilter;

use crate::devices::Devices;
use crate::message::HEADER;

/// Offset of the message type in `nlmsghdr`, in bytes.
const TYPE: u32 = 4;
/// Offset of the netlink port of the socket that asked for the change. The port is 0 if the kernel does not say.
const PORT: u32 = 12;
/// Offset of the index in `ifinfomsg`, `ifaddrmsg` and `ndmsg`.
const INDEX: u32 = HEADER as u32 + 4;

/// Accepts the whole message.
pub(crate) const ACCEPT: SockFilter = SockFilter::new((BPF_RET | BPF_K) as u16, 0, 0, u32::MAX);
/// Drops the message.
pub(crate) const DROP: SockFilter = SockFilter::new((BPF_RET | BPF_K) as u16, 0, 0, 0);

/// Notifications about one kind of object, and which of them matter.
#[derive(Clone, Copy)]
pub(crate) struct Notifications {
    /// Name of the kind in events.
    pub(crate) name: &'static str,
    /// Multicast groups of the notifications, `RTNLGRP_*`.
    pub(crate) groups: &'static [u32],
    /// Message types: an object is new or changed, and an object is deleted.
    pub(crate) types: [u16; 2],
    pub(crate) own_writes: OwnWrites,
    /// Returns the part of the filter that accepts or drops these notifications; `None` if all of them matter.
    pub(crate) selection: Option<fn(&Interest) -> Vec<SockFilter>>,
}

/// Treatment of notifications that our own socket caused.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnWrites {
    Dropped,
    /// Reported, since other objects may have changed along with the written one.
    Reported,
}

/// Selection of the kernel's notifications that a [`Watch`](crate::Watch) reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Names of our links, of the uplink and of the devices that limit its MTU, whether they exist or not.
    pub(crate) names: Vec<LinkName>,
    /// Indexes of our links. Neighbours and FDB entries of the uplink are not ours.
    pub(crate) links: Vec<u32>,
    uplink: Option<u32>,
    /// Indexes of the devices by which packets of pods come in.
    pub(crate) pods: Vec<u32>,
    /// Our tables, and those that hold the underlay's routes, such as the main table.
    pub(crate) tables: Vec<u32>,
    /// Netlink port of the socket that writes for us.
    own_port: u32,
}

impl Interest {
    pub(crate) fn new(owned: &Owned, devices: &Devices, own_port: u32) -> Self {
        let mut tables: Vec<u32> = owned.all_tables().chain([MAIN_TABLE]).collect();
        tables.sort_unstable();
        tables.dedup();
        Self {
            names: owned.links.iter().copied().chain([owned.uplink]).collect(),
            links: devices.indexes(&owned.links).into_iter().map(|(_, index)| index).collect(),
            uplink: devices.index(owned.uplink),
            pods: Vec::new(),
            tables,
            own_port,
        }
    }

    /// Adds names of devices whose link events matter as well: they come, go and change.
    pub(crate) fn and_links(mut self, others: Vec<LinkName>) -> Self {
        self.names.extend(others);
        self
    }

    /// Adds devices by which packets of pods come in: their sysctls matter.
    pub(crate) fn and_pods(self, pods: Vec<u32>) -> Self {
        Self { pods, ..self }
    }

    /// Adds routing tables that hold routes of the underlay.
    pub(crate) fn and_tables(mut self, others: &[u32]) -> Self {
        self.tables.extend(others);
        self.tables.sort_unstable();
        self.tables.dedup();
        self
    }

    /// Indexes of our links and of the uplink.
    pub(crate) fn devices(&self) -> impl Iterator<Item = u32> {
        self.links.iter().copied().chain(self.uplink)
    }

    /// Returns the filter for these notifications. It accepts every message that they do not name.
    pub(crate) fn program(&self, kinds: &[Notifications]) -> Vec<SockFilter> {
        let mut program = own_echo(self.own_port, kinds);
        program.push(load(BPF_H | BPF_ABS, TYPE));
        for kind in kinds {
            if let Some(selection) = kind.selection {
                section(&mut program, kind.types, selection(self));
            }
        }
        program.push(ACCEPT);
        program
    }
}

/// Drops the notifications that our own socket caused, of the kinds that say so.
fn own_echo(port: u32, kinds: &[Notifications]) -> Vec<SockFilter> {
    let mut body = vec![load(BPF_H | BPF_ABS, TYPE)];
    let dropped = kinds.iter().filter(|kind| kind.own_writes == OwnWrites::Dropped);
    for kind in dropped.flat_map(|kind| kind.types) {
        body.extend([equal(u32::from(kind.to_be()), 0, 1), DROP]);
    }
    let mut program = vec![load(BPF_W | BPF_ABS, PORT), equal(port.to_be(), 0, body.len() as u8)];
    program.extend(body);
    program
}

/// Adds a `body` for the two `types`; the body returns in any case. The accumulator holds the type before and after.
fn section(program: &mut Vec<SockFilter>, types: [u16; 2], body: Vec<SockFilter>) {
    let [new, del] = types.map(|kind| u32::from(kind.to_be()));
    program.push(equal(new, 2, 0));
    program.push(equal(del, 1, 0));
    program.push(SockFilter::new((BPF_JMP | BPF_JA) as u16, 0, 0, body.len() as u32));
    program.extend(body);
}

/// Accepts the messages about these devices.
pub(crate) fn by_index(indexes: impl Iterator<Item = u32>) -> Vec<SockFilter> {
    let mut body = vec![load(BPF_W | BPF_ABS, INDEX)];
    indexes.for_each(|index| body.extend(accept_if(index.to_be())));
    body.push(DROP);
    body
}

/// Leaves the offset of an attribute in X, or drops the message if there is none. `start` is the offset of the first one.
pub(crate) fn find(start: u32, kind: u16) -> [SockFilter; 6] {
    let extension = (libc::SKF_AD_OFF + libc::SKF_AD_NLATTR) as u32;
    [
        load(BPF_IMM, start),
        SockFilter::new((BPF_LDX | BPF_IMM) as u16, 0, 0, kind.into()),
        load(BPF_W | BPF_ABS, extension),
        equal(0, 0, 1),
        DROP,
        SockFilter::new((BPF_MISC | BPF_TAX) as u16, 0, 0, 0),
    ]
}

pub(crate) fn accept_if(value: u32) -> [SockFilter; 2] {
    [equal(value, 0, 1), ACCEPT]
}

/// Loads a value, always as big-endian. Values that netlink carries in the machine's order are compared byte-swapped.
pub(crate) fn load(mode: u32, from: u32) -> SockFilter {
    SockFilter::new((BPF_LD | mode) as u16, 0, 0, from)
}

pub(crate) fn equal(value: u32, then: u8, otherwise: u8) -> SockFilter {
    SockFilter::new((BPF_JMP | BPF_JEQ | BPF_K) as u16, then, otherwise, value)
}
