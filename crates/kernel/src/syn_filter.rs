//! Filter of a listening TCP socket: the kernel drops connection requests from some addresses before they cost the process
//! anything. It is a classic BPF program (socket(7), `SO_ATTACH_FILTER`) and needs no capability.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use libc::{BPF_ABS, BPF_B, BPF_H, BPF_JA, BPF_JMP, BPF_JSET, BPF_K, BPF_W};
use socket2::{SockFilter, SockRef};

use crate::filter::{ACCEPT, DROP, equal, load};

/// Offset in bytes of the flags in a TCP header, at which the packet begins for this filter.
const FLAGS: u32 = 13;
const ACK: u32 = 0x10;
/// Offsets in bytes of the source address in the IP header.
const SOURCE_V4: i32 = libc::SKF_NET_OFF + 12;
const SOURCE_V6: i32 = libc::SKF_NET_OFF + 8;

/// Makes the kernel drop the requests of these addresses for new connections to `listener`. An IPv6 address stands for its
/// /64. Connections that exist, and those that wait for `accept`, stay.
///
/// # Errors
///
/// Returns the kernel's error: `ENOMEM` for thousands of addresses.
pub fn drop_requests(listener: impl AsFd, sources: &[IpAddr]) -> io::Result<()> {
    SockRef::from(&listener).attach_filter(&program(sources))
}

/// Ends what [`drop_requests`] has begun.
///
/// # Errors
///
/// Returns the kernel's error: `ENOENT` if there is no filter.
pub fn admit_requests(listener: impl AsFd) -> io::Result<()> {
    SockRef::from(&listener).detach_filter()
}

fn program(sources: &[IpAddr]) -> Vec<SockFilter> {
    let (mut v4, mut v6) = (vec![load(BPF_W | BPF_ABS, SOURCE_V4 as u32)], Vec::new());
    for source in sources {
        match source.to_canonical() {
            IpAddr::V4(source) => v4.extend([equal(source.to_bits(), 0, 1), DROP]),
            IpAddr::V6(source) => {
                let [high, low] = [source.to_bits() >> 96, source.to_bits() >> 64].map(|half| half as u32);
                v6.extend([
                    load(BPF_W | BPF_ABS, SOURCE_V6 as u32),
                    equal(high, 0, 3),
                    load(BPF_W | BPF_ABS, (SOURCE_V6 + 4) as u32),
                    equal(low, 0, 1),
                    DROP,
                ]);
            }
        }
    }
    v4.push(ACCEPT);
    v6.push(ACCEPT);
    let mut program = vec![
        load(BPF_B | BPF_ABS, FLAGS),
        // A connection inherits the filter of its listener, and all its packets but the first have this flag.
        SockFilter::new((BPF_JMP | BPF_JSET | BPF_K) as u16, 0, 1, ACK),
        ACCEPT,
        load(BPF_H | BPF_ABS, (libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL) as u32),
        equal(libc::ETH_P_IP as u32, 0, 1),
        SockFilter::new((BPF_JMP | BPF_JA) as u16, 0, 0, v6.len() as u32),
    ];
    program.extend(v6);
    program.extend(v4);
    program
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    fn connects(to: SocketAddr) -> bool {
        TcpStream::connect_timeout(&to, Duration::from_millis(200)).is_ok()
    }

    #[test]
    fn requests_of_these_addresses_alone_are_dropped() {
        for (own, other) in [("127.0.0.1:0", "127.0.0.2"), ("[::1]:0", "fd00::1")] {
            let listener = TcpListener::bind(own).unwrap();
            let to = listener.local_addr().unwrap();
            let many = |last: &str| {
                let others = (0..200_u8)
                    .flat_map(|host| [[192, 0, 2, host].into(), format!("fd00:{host:x}::").parse().unwrap()]);
                others.chain([last.parse().unwrap()]).collect::<Vec<IpAddr>>()
            };
            drop_requests(&listener, &many(other)).unwrap();
            assert!(connects(to), "{to} is not in the list");
            let open = TcpStream::connect(to).unwrap();
            drop_requests(&listener, &many(&to.ip().to_string())).unwrap();
            assert!(!connects(to), "{to} is in the list");
            let (accepted, _) = listener.accept().unwrap();
            drop((open, accepted));
            admit_requests(&listener).unwrap();
            assert!(connects(to));
        }
    }
}
