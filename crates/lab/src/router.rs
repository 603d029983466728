//! Sends one router advertisement, as radvd would: hosts that receive it take a default route from it.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::sys::socket::sockopt::{BindToDevice, Ipv6MulticastHops};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket,
};

use crate::ns::Ns;

/// Router advertisement (RFC 4861, 4.2). Its fields: type, code, checksum (set by the kernel), hop limit, flags,
/// lifetime in seconds, reachable time, retransmission timer.
const ADVERTISEMENT: [u8; 16] = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];

/// Hop limit of the packet; receivers ignore a smaller one, with which it could have crossed a router.
const HOPS: i32 = 255;

/// Sends one advertisement from `ns` through `device` to all hosts on its segment.
pub fn advertise(ns: &Ns, device: &str) {
    ns.within(|| {
        let (kind, protocol) = (SockType::Raw, SockProtocol::IcmpV6);
        let socket =
            socket(AddressFamily::Inet6, kind, SockFlag::SOCK_CLOEXEC, protocol).expect("a raw socket");
        setsockopt(&socket, BindToDevice, &device.into()).expect("the device is there");
        setsockopt(&socket, Ipv6MulticastHops, &HOPS).expect("a number of hops");
        let all = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, 0);
        sendto(socket.as_raw_fd(), &ADVERTISEMENT, &SockaddrIn6::from(all), MsgFlags::empty())
            .unwrap_or_else(|e| panic!("{}: advertising on {device}: {e}", ns.name()));
    });
}
