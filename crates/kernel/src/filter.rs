//! Filter of the monitor stream, as a classic BPF program: a message that does not concern us wakes no thread. It
//! compares the socket, table, device and name; it does not interpret a message.

use libc::{
    BPF_ABS, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JA, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_LDX, BPF_MISC,
};
use libc::{BPF_RET, BPF_TAX, BPF_W};
use plan::LinkName;
use plan::owned::Owned;
use plan::state::MAIN_TABLE;
use socket2::SockFilter;

use crate::link::Devices;
use crate::nexthop;
use crate::wire::HEADER;

/// Offset of the message type in `nlmsghdr`, in bytes.
const TYPE: u32 = 4;
/// Offset of the netlink port of the socket that asked for the change. The port is 0 if the kernel does not say.
const PORT: u32 = 12;
/// Offset of the index in `ifinfomsg`, `ifaddrmsg` and `ndmsg`, and of the table in `rtmsg`.
const INDEX_OR_TABLE: u32 = HEADER as u32 + 4;
const LINK_ATTRIBUTES: u32 = HEADER as u32 + 16;
const ROUTE_ATTRIBUTES: u32 = HEADER as u32 + 12;

/// Accepts the whole message.
pub(crate) const ACCEPT: SockFilter = SockFilter::new((BPF_RET | BPF_K) as u16, 0, 0, u32::MAX);
/// Drops the message.
pub(crate) const REFUSE: SockFilter = SockFilter::new((BPF_RET | BPF_K) as u16, 0, 0, 0);

/// Selection of the kernel's notifications that a [`Watch`](crate::Watch) reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Names of our links, of the uplink and of the devices that limit its MTU, whether they exist or not.
    names: Vec<LinkName>,
    /// Indexes of our links. Neighbours and FDB entries of the uplink are not ours.
    links: Vec<u32>,
    uplink: Option<u32>,
    /// Our tables, and the main table, which holds the underlay's routes.
    tables: Vec<u32>,
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
            tables,
            own_port,
        }
    }

    /// Adds names of devices whose link events matter as well: they come, go and change.
    pub(crate) fn and_links(mut self, others: Vec<LinkName>) -> Self {
        self.names.extend(others);
        self
    }

    /// Returns the filter. It accepts every kind of message that it does not name.
    pub(crate) fn program(&self) -> Vec<SockFilter> {
        let devices = || self.links.iter().copied().chain(self.uplink);
        let mut program = own_echo(self.own_port);
        program.push(load(BPF_H | BPF_ABS, TYPE));
        section(&mut program, [libc::RTM_NEWNEIGH, libc::RTM_DELNEIGH], by_index(self.links.iter().copied()));
        section(&mut program, [libc::RTM_NEWADDR, libc::RTM_DELADDR], by_index(devices()));
        section(&mut program, [libc::RTM_NEWROUTE, libc::RTM_DELROUTE], by_table(&self.tables));
        let mut link = by_index(devices());
        // A device that was created again has an index that is not known yet.
        link.pop();
        link.extend(by_name(&self.names));
        section(&mut program, [libc::RTM_NEWLINK, libc::RTM_DELLINK], link);
        program.push(ACCEPT);
        program
    }
}

/// Drops the notifications of routes, neighbours and next hops that our own socket wrote. A change of a link or an
/// address always passes, since other objects may have gone with it.
fn own_echo(port: u32) -> Vec<SockFilter> {
    let mut body = vec![load(BPF_H | BPF_ABS, TYPE)];
    for kind in [
        libc::RTM_NEWROUTE,
        libc::RTM_DELROUTE,
        libc::RTM_NEWNEIGH,
        libc::RTM_DELNEIGH,
        nexthop::RTM_NEWNEXTHOP,
        nexthop::RTM_DELNEXTHOP,
    ] {
        body.extend([equal(u32::from(kind.to_be()), 0, 1), REFUSE]);
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

fn by_index(indexes: impl Iterator<Item = u32>) -> Vec<SockFilter> {
    let mut body = vec![load(BPF_W | BPF_ABS, INDEX_OR_TABLE)];
    indexes.for_each(|index| body.extend(accept_if(index.to_be())));
    body.push(REFUSE);
    body
}

fn by_table(tables: &[u32]) -> Vec<SockFilter> {
    let mut body = vec![load(BPF_B | BPF_ABS, INDEX_OR_TABLE)];
    let (short, long): (Vec<u32>, Vec<u32>) = tables.iter().partition(|table| **table < 256);
    short.iter().for_each(|table| body.extend(accept_if(*table)));
    if !long.is_empty() {
        body.extend(find(ROUTE_ATTRIBUTES, libc::RTA_TABLE));
        body.push(load(BPF_W | BPF_IND, 4));
        long.iter().for_each(|table| body.extend(accept_if(table.to_be())));
    }
    body.push(REFUSE);
    body
}

/// Compares the name word by word, with its closing NUL and the padding behind it.
fn by_name(names: &[LinkName]) -> Vec<SockFilter> {
    let mut body = Vec::from(find(LINK_ATTRIBUTES, libc::IFLA_IFNAME));
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
    body.push(REFUSE);
    body
}

/// Leaves the offset of an attribute in X, or drops the message if there is none.
fn find(start: u32, kind: u16) -> [SockFilter; 6] {
    let extension = (libc::SKF_AD_OFF + libc::SKF_AD_NLATTR) as u32;
    [
        load(BPF_IMM, start),
        SockFilter::new((BPF_LDX | BPF_IMM) as u16, 0, 0, kind.into()),
        load(BPF_W | BPF_ABS, extension),
        equal(0, 0, 1),
        REFUSE,
        SockFilter::new((BPF_MISC | BPF_TAX) as u16, 0, 0, 0),
    ]
}

fn accept_if(value: u32) -> [SockFilter; 2] {
    [equal(value, 0, 1), ACCEPT]
}

/// Loads a value, always as big-endian. Values that netlink carries in the machine's order are compared byte-swapped.
pub(crate) fn load(mode: u32, from: u32) -> SockFilter {
    SockFilter::new((BPF_LD | mode) as u16, 0, 0, from)
}

pub(crate) fn equal(value: u32, then: u8, otherwise: u8) -> SockFilter {
    SockFilter::new((BPF_JMP | BPF_JEQ | BPF_K) as u16, then, otherwise, value)
}
