//! Sockets that send and receive whole packets: frames of one link, IP packets with our own header, and ICMP. Their
//! filters drop packets that cannot be replies, so that these wake no thread.

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
use plan::{Family, LinkName, Mac};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use socket2::{Domain, Protocol, Type};

use crate::error::{Cause, Error};
use crate::handle::Kernel;
use crate::message::parts;
use crate::neigh;

pub use filter::Marks;
pub use neigh::KnownNeighbour;

/// Type of a frame's payload, as in the Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EtherType {
    Arp = 0x0806,
    Ipv4 = 0x0800,
    Ipv6 = 0x86dd,
}

impl EtherType {
    /// Returns the type of IP packets of this family.
    pub fn of(family: Family) -> Self {
        match family {
            Family::Ipv4 => Self::Ipv4,
            Family::Ipv6 => Self::Ipv6,
        }
    }
}

/// Requested size in bytes of the receive buffer; replies may arrive all at once.
const RECEIVE_BUFFER: usize = 1 << 20;

/// A network device, as packet sockets need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    at: LinkAddr,
    /// MAC of the device. `None` if it is not Ethernet or has no unicast MAC: its frames are read without an Ethernet
    /// header.
    pub mac: Option<Mac>,
    /// True if neighbours are resolved by ARP or ND: an Ethernet device without the flag NOARP.
    pub resolves: bool,
    /// IP addresses of the device.
    pub addresses: Vec<IpAddr>,
}

impl Interface {
    /// Returns the interface index. A device that is created again under the same name has another one.
    pub fn index(&self) -> usize {
        self.at.ifindex()
    }
}

/// A received packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Length in bytes, at most that of the buffer.
    pub length: usize,
    /// Address of the sender; `None` for frames and netlink messages.
    pub from: Option<IpAddr>,
    /// Time since the kernel received the packet. It is wrong if the clock was set meanwhile.
    pub age: Duration,
}

/// Returns all devices with their addresses, by name. Fails if getifaddrs(3) fails.
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

/// A raw socket; none of its calls blocks.
#[derive(Debug)]
pub struct Socket(socket2::Socket);

impl Socket {
    /// Opens a socket for frames of one link and type. It receives only replies that `marks` identifies, ARP replies
    /// and neighbour advertisements. Fails without `CAP_NET_RAW`, or if the link is gone.
    pub fn frames(link: &Interface, kind: EtherType, marks: Marks) -> io::Result<Self> {
        let protocol = Protocol::from(i32::from((kind as u16).to_be()));
        let socket = Self::open(Domain::PACKET, protocol)?;
        // An unbound socket receives frames of all links.
        socket.0.attach_filter(&filter::NOTHING)?;
        // The address names no protocol, so the one above stays.
        bind(socket.0.as_raw_fd(), &link.at)?;
        while socket.receive(&mut [0]).is_some() {}
        let header = if link.mac.is_some() { filter::ETHERNET } else { 0 };
        socket.0.attach_filter(&filter::frames(kind, header, marks))?;
        Ok(socket)
    }

    /// Opens a socket that sends IP packets with our own header, along the kernel's routes. It receives nothing. Fails
    /// without `CAP_NET_RAW`.
    pub fn sender(family: Family) -> io::Result<Self> {
        // With IPPROTO_RAW the header is ours.
        let socket = Self::open(domain(family), Protocol::from(libc::IPPROTO_RAW))?;
        socket.ignore_path_mtu(family)?;
        Ok(socket)
    }

    /// Opens a socket that receives the replies to our probes, and the ICMP errors that quote them. Fails without
    /// `CAP_NET_RAW`.
    pub fn answers(family: Family, marks: Marks) -> io::Result<Self> {
        let protocol = match family {
            Family::Ipv4 => Protocol::ICMPV4,
            Family::Ipv6 => Protocol::ICMPV6,
        };
        let socket = Self::open(domain(family), protocol)?;
        socket.0.attach_filter(&filter::icmp(family, marks))?;
        // An error about a probe that was too large must not change the path MTU that the node knows. The option
        // ensures that for IPv4. For IPv6 the kernel learns the MTU whatever a raw socket says.
        socket.ignore_path_mtu(family)?;
        while socket.receive(&mut [0]).is_some() {}
        Ok(socket)
    }

    /// Opens a socket for suspicious changes of a link's neighbours: entries that failed, or whose MAC may have
    /// changed. [`neighbour_event`] decodes its datagrams. Fails if the socket cannot be opened or bound.
    pub fn neighbour_events(link: &Interface) -> io::Result<Self> {
        let socket = Self::open(Domain::from(libc::AF_NETLINK), Protocol::from(libc::NETLINK_ROUTE))?;
        socket.0.attach_filter(&filter::neighbour_events(link.index() as u32))?;
        bind(socket.0.as_raw_fd(), &NetlinkAddr::new(0, 1 << (libc::RTNLGRP_NEIGH - 1)))?;
        Ok(socket)
    }

    /// Sends packets at their full size, whatever path MTU the kernel knows. Otherwise IPv6 would send fragments.
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
        // The kernel grants what its limit allows.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        Ok(Self(socket))
    }

    /// Sends a frame through the link that the socket is bound to. Fails as send(2) does.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.0.send(frame).map(drop)
    }

    /// Sends a packet to `target`, the destination in its header. Fails as sendto(2) does.
    pub fn send_to(&self, packet: &[u8], target: IpAddr) -> io::Result<()> {
        self.0.send_to(packet, &SocketAddr::new(target, 0).into()).map(drop)
    }

    /// Receives the next packet into `buffer`. Returns `None` if there is none, or after an error.
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
                // The link went down or vanished, which is reported once. Packets may be queued nevertheless.
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

/// Decodes a datagram of [`Socket::neighbour_events`]: the neighbour's address, and the MAC that the kernel has for it now. The
/// MAC is `None` if the neighbour does not answer. Returns `None` for any other datagram.
pub fn neighbour_event(datagram: &[u8]) -> Option<(IpAddr, Option<Mac>)> {
    parts(datagram).find_map(neigh::neighbour_event)
}

fn domain(family: Family) -> Domain {
    match family {
        Family::Ipv4 => Domain::IPV4,
        Family::Ipv6 => Domain::IPV6,
    }
}

impl Kernel {
    /// Returns the neighbours on a link whose MAC is known, without those that have the link's own MAC. Fails if the
    /// dump fails.
    pub fn neighbours(&mut self, link: &Interface) -> Result<Vec<KnownNeighbour>, Error> {
        let index = u32::try_from(link.index()).unwrap_or_default();
        let dump = self.netlink.dump(neigh::dump_request(0, index), |all: &mut Vec<_>, part| {
            let ours = |known: &KnownNeighbour| Some(known.mac) == link.mac;
            all.extend(
                neigh::known_neighbour(part).filter(|known| neigh::index(part) == index && !ours(known)),
            );
        });
        dump.map_err(|cause| Error::new("read the uplink's neighbours", cause))
    }
}
