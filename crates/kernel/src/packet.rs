//! Sockets that send and hear whole packets: frames of one link, IP packets with a header of our own, and ICMP. Knows no
//! question and no answer; only what cannot be one wakes nobody.

mod filter;

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, SystemTime};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{
    ControlMessageOwned, LinkAddr, MsgFlags, NetlinkAddr, SockaddrStorage, bind, recvmsg, setsockopt, sockopt,
};
use nix::sys::time::TimeSpec;
use plan::input::Family;
use plan::{LinkName, Mac};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use socket2::{Domain, Protocol, Type};

use crate::error::{Cause, Error};
use crate::neigh;
use crate::wire::parts;

pub use filter::Marks;
pub use neigh::Known;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EtherType {
    Arp = 0x0806,
    Ipv4 = 0x0800,
    Ipv6 = 0x86dd,
}

impl EtherType {
    /// Of IP packets.
    pub fn of(family: Family) -> Self {
        match family {
            Family::Ipv4 => Self::Ipv4,
            Family::Ipv6 => Self::Ipv6,
        }
    }
}

/// Room for answers that come all at once.
const RECEIVE_BUFFER: usize = 1 << 20;

/// A device as packets see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    at: LinkAddr,
    /// `None` where frames have no Ethernet header.
    pub mac: Option<Mac>,
    /// Neighbours are found by asking.
    pub resolves: bool,
    pub addresses: Vec<IpAddr>,
}

impl Interface {
    /// Another device has another one, also under the same name.
    pub fn index(&self) -> usize {
        self.at.ifindex()
    }
}

/// A packet that has come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes.
    pub length: usize,
    /// Who sent it, where its own header is not there to say.
    pub from: Option<IpAddr>,
    /// Since the kernel took it; a clock that is set meanwhile falsifies it.
    pub age: Duration,
}

/// All devices that packets can be sent through.
pub fn interfaces() -> Result<BTreeMap<LinkName, Interface>, Error> {
    let read = || getifaddrs().map_err(|errno| Cause::from(&io::Error::from(errno)));
    let entries: Vec<_> = read().map_err(|cause| Error::new("read the devices' addresses", cause))?.collect();
    let mut all = BTreeMap::new();
    for entry in &entries {
        let at = entry.address.as_ref().and_then(|address| address.as_link_addr().copied());
        let (Some(at), Ok(name)) = (at, entry.interface_name.parse()) else { continue };
        let ethernet = at.hatype() == libc::ARPHRD_ETHER;
        let mac = at.addr().map(Mac).filter(|mac| ethernet && mac.is_unicast());
        let resolves = mac.is_some() && !entry.flags.contains(InterfaceFlags::IFF_NOARP);
        all.insert(name, Interface { at, mac, resolves, addresses: Vec::new() });
    }
    for entry in &entries {
        let Ok(name) = entry.interface_name.parse::<LinkName>() else { continue };
        if let (Some(link), Some(ip)) = (all.get_mut(&name), entry.address.as_ref().and_then(ip_of)) {
            link.addresses.push(ip);
        }
    }
    Ok(all)
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| Some(address.as_sockaddr_in6()?.ip().into()))
}

/// One of them; nothing it does waits.
#[derive(Debug)]
pub struct Socket(socket2::Socket);

impl Socket {
    /// Frames of one link, and of them the answers to ours.
    pub fn frames(link: &Interface, kind: EtherType, marks: Marks) -> io::Result<Self> {
        let protocol = Protocol::from(i32::from((kind as u16).to_be()));
        let socket = Self::open(Domain::PACKET, protocol)?;
        // Until it is bound it hears all links.
        socket.0.attach_filter(&filter::NOTHING)?;
        // The address names no protocol, and so the one above stays.
        bind(socket.0.as_raw_fd(), &link.at)?;
        while socket.receive(&mut [0]).is_some() {}
        let header = if link.mac.is_some() { filter::ETHERNET } else { 0 };
        socket.0.attach_filter(&filter::frames(kind, header, marks))?;
        Ok(socket)
    }

    /// Sends IP packets with a header of our own the way that the kernel routes them. Hears nothing.
    pub fn sender(family: Family) -> io::Result<Self> {
        // IPPROTO_RAW means that the header is ours.
        let socket = Self::open(domain(family), Protocol::from(libc::IPPROTO_RAW))?;
        socket.ignore_path_mtu(family)?;
        Ok(socket)
    }

    /// Hears the answers to ours, and those who could not deliver them.
    pub fn answers(family: Family, marks: Marks) -> io::Result<Self> {
        let protocol = match family {
            Family::Ipv4 => Protocol::ICMPV4,
            Family::Ipv6 => Protocol::ICMPV6,
        };
        let socket = Self::open(domain(family), protocol)?;
        socket.0.attach_filter(&filter::icmp(family, marks))?;
        // What comes back to a probe that was too large must not become what the node knows of the path. That holds for IPv4;
        // of IPv6 the kernel learns it whatever a raw socket says.
        socket.ignore_path_mtu(family)?;
        while socket.receive(&mut [0]).is_some() {}
        Ok(socket)
    }

    /// Hears of a link's neighbours whom the kernel has asked in vain, and who may have another MAC; see [`doubt`].
    pub fn doubts(link: &Interface) -> io::Result<Self> {
        let socket = Self::open(Domain::from(libc::AF_NETLINK), Protocol::from(libc::NETLINK_ROUTE))?;
        socket.0.attach_filter(&filter::doubts(link.index() as u32))?;
        bind(socket.0.as_raw_fd(), &NetlinkAddr::new(0, 1 << (libc::RTNLGRP_NEIGH - 1)))?;
        Ok(socket)
    }

    /// What is sent is as large as it is, whatever the kernel knows of the path: IPv6 would be cut into fragments.
    fn ignore_path_mtu(&self, family: Family) -> io::Result<()> {
        match family {
            Family::Ipv4 => set_ip_mtu_discover(&self.0, Ipv4PathMtuDiscovery::INTERFACE)?,
            Family::Ipv6 => set_ipv6_mtu_discover(&self.0, Ipv6PathMtuDiscovery::INTERFACE)?,
        }
        Ok(())
    }

    fn open(domain: Domain, protocol: Protocol) -> io::Result<Self> {
        let socket = socket2::Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        // The kernel grants what it may.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        Ok(Self(socket))
    }

    /// A frame, out of the link that it is bound to.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.0.send(frame).map(drop)
    }

    /// A packet, to where it says that it goes.
    pub fn send_to(&self, packet: &[u8], target: IpAddr) -> io::Result<()> {
        self.0.send_to(packet, &SocketAddr::new(target, 0).into()).map(drop)
    }

    /// The next packet. `None` when there is none.
    pub fn receive(&self, buffer: &mut [u8]) -> Option<Received> {
        let (mut parts, mut control) = ([IoSliceMut::new(buffer)], nix::cmsg_space!(TimeSpec));
        loop {
            let flags = MsgFlags::empty();
            match recvmsg::<SockaddrStorage>(self.0.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Ok(message) => {
                    let taken =
                        message.cmsgs().ok().into_iter().flatten().find_map(|control| match control {
                            ControlMessageOwned::ScmTimestampns(taken) => Some(Duration::from(taken)),
                            _ => None,
                        });
                    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
                    let age = taken.map_or(Duration::ZERO, |taken| now().saturating_sub(taken));
                    let from = message.address.as_ref().and_then(ip_of);
                    return Some(Received { length: message.bytes, from, age });
                }
                Err(nix::Error::EAGAIN) => return None,
                // The link went down or away, once told; there may be packets all the same.
                Err(nix::Error::EINTR | nix::Error::ENETDOWN) => {}
                Err(_) => return None,
            }
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Which neighbour it is that the kernel doubts, and the MAC that it believes it has now; `None` where nobody answers.
pub fn doubt(datagram: &[u8]) -> Option<(IpAddr, Option<Mac>)> {
    parts(datagram).find_map(neigh::doubt)
}

fn domain(family: Family) -> Domain {
    match family {
        Family::Ipv4 => Domain::IPV4,
        Family::Ipv6 => Domain::IPV6,
    }
}

impl crate::Kernel {
    /// Who is known on a link.
    pub fn neighbours(&mut self, link: &Interface) -> Result<Vec<Known>, Error> {
        let index = u32::try_from(link.index()).unwrap_or_default();
        let dump = self.netlink.dump(neigh::dump_request(0, index), |all: &mut Vec<_>, part| {
            let ours = |known: &Known| Some(known.mac) == link.mac;
            all.extend(neigh::known(part).filter(|known| neigh::index(part) == index && !ours(known)));
        });
        dump.map_err(|cause| Error::new("read the uplink's neighbours", cause))
    }
}
