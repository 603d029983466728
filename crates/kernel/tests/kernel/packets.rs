//! Tests of packet sockets: the packets that they send, and the packets that reach them.

use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use kernel::Kernel;
use kernel::packet::{EtherType, Interface, KnownNeighbour, Marks, Socket, interfaces, neighbour_event};
use lab::Timing::Free;
use plan::{Family, Mac};

use crate::scene::*;

const MARKS: Marks = Marks { echo: 0x1234, port: 33434 };
const NEAR: Mac = Mac([2, 0, 0, 0, 0, 1]);
const FAR: Mac = Mac([2, 0, 0, 0, 0, 2]);

/// Two ends of one wire. `near` is ours; `far` is in a namespace that lives as long as this value.
struct Wire(std::process::Child);

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wire() -> Wire {
    let far = Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap();
    let wire = Wire(far);
    let pid = wire.0.id();
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let moved = || std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns != own);
    assert!(lab::until(Duration::from_secs(5), || moved().then_some(())).is_some());
    let there = format!("nsenter -t {pid} -n");
    // The lab has disabled IPv6.
    sh(&format!(
        "for who in all default; do echo 0 > /proc/sys/net/ipv6/conf/$who/disable_ipv6; done
         ip link add near address {NEAR} type veth peer name far address {FAR}
         ip link set far netns {pid}
         ip link set near up; {there} ip link set far up
         ip addr add 192.0.2.1/24 dev near; ip addr add fd00:2::1/64 dev near nodad
         {there} ip addr add 192.0.2.2/24 dev far; {there} ip addr add fd00:2::2/64 dev far nodad"
    ));
    // A link drops packets until a worker of the kernel has seen its carrier.
    for show in ["ip -o link show near", &format!("{there} ip -o link show far")] {
        let is_up = || sh(show).contains("state UP").then_some(());
        assert!(lab::until(Duration::from_secs(5), is_up).is_some(), "{show}");
    }
    wire
}

fn near() -> Interface {
    interfaces().unwrap().remove(&name("near")).unwrap()
}

fn heard(socket: &Socket) -> Option<(Vec<u8>, Option<IpAddr>)> {
    let mut buffer = [0; 2048];
    lab::until(Duration::from_secs(2), || socket.receive(&mut buffer))
        .map(|it| (buffer[..it.length].to_vec(), it.from))
}

fn arp(operation: u8) -> Vec<u8> {
    let head = [&[0xff; 6][..], &NEAR.0, &[8, 6], &[0, 1, 8, 0, 6, 4, 0, operation]].concat();
    [&head[..], &NEAR.0, &[192, 0, 2, 1], &[0; 6], &[192, 0, 2, 2]].concat()
}

/// Returns an IPv4 echo request with its ICMP checksum.
fn echo_v4(id: u16, target: [u8; 4]) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let sum = !(0x0800 + u32::from(id) + 7);
    let [.., a, b] = sum.to_be_bytes();
    let ip = [0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 1, 0, 0, 192, 0, 2, 1];
    [&ip[..], &target, &[8, 0, a, b, high, low, 0, 7]].concat()
}

#[test]
fn interfaces_are_listed_as_ip_shows_them() {
    lab::test(Free, || {
        let _far = wire();
        let all = interfaces().unwrap();
        let near = &all[&name("near")];
        assert_eq!((near.mac, near.resolves), (Some(NEAR), true));
        for ip in ["192.0.2.1", "fd00:2::1"] {
            assert!(near.addresses.contains(&ip.parse().unwrap()), "{near:?}");
        }
        assert_eq!((all[&name("lo")].mac, all[&name("lo")].resolves), (None, false));
        sh("ip link set near arp off");
        assert!(!interfaces().unwrap()[&name("near")].resolves);
    });
}

#[test]
fn a_frame_is_sent_and_only_its_reply_received() {
    lab::test(Free, || {
        let _far = wire();
        let socket = Socket::frames(&near(), EtherType::Arp, MARKS).unwrap();
        socket.send(&arp(1)).unwrap();
        let (frame, _) = heard(&socket).unwrap();
        assert_eq!(
            (&frame[6..12], &frame[20..22], &frame[28..32]),
            (&FAR.0[..], &[0, 2][..], &[192, 0, 2, 2][..])
        );
        let mut kernel = Kernel::open().unwrap();
        sh("ping -c 1 -W 2 192.0.2.2");
        let known = |is_static| KnownNeighbour { ip: [192, 0, 2, 2].into(), mac: FAR, is_static };
        assert_eq!(kernel.neighbours(&near()).unwrap(), [known(false)]);
        sh(&format!("ip neigh replace 192.0.2.2 lladdr {FAR} dev near nud permanent"));
        assert_eq!(kernel.neighbours(&near()).unwrap(), [known(true)]);
    });
}

#[test]
fn only_echoes_with_our_mark_are_received() {
    lab::test(Free, || {
        let _far = wire();
        let sender = Socket::sender(Family::Ipv4).unwrap();
        let answers = Socket::answers(Family::Ipv4, MARKS).unwrap();
        let frames = Socket::frames(&near(), EtherType::Ipv4, MARKS).unwrap();
        for id in [0x4321, MARKS.echo] {
            sender.send_to(&echo_v4(id, [192, 0, 2, 2]), "192.0.2.2".parse().unwrap()).unwrap();
        }
        sh("ping -c 1 -W 2 192.0.2.2");
        for (socket, header) in [(&answers, 0), (&frames, 14)] {
            let (packet, _) = heard(socket).unwrap();
            assert_eq!((packet[header + 20], &packet[header + 24..header + 26]), (0, &[0x12, 0x34][..]));
            assert!(socket.receive(&mut [0; 64]).is_none(), "one has our mark");
        }
    });
}

#[test]
fn an_icmp_error_is_received_with_its_quoted_packet() {
    lab::test(Free, || {
        let _far = wire();
        for (family, from, to, quoted) in [
            (Family::Ipv4, "192.0.2.1", "192.0.2.2", 28 + 22),
            (Family::Ipv6, "fd00:2::1", "fd00:2::2", 8 + 42),
        ] {
            let answers = Socket::answers(family, MARKS).unwrap();
            let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let socket = UdpSocket::bind((from, 0)).unwrap();
            socket.send_to(b"x", (to, 9)).unwrap();
            socket.send_to(b"x", (to, MARKS.port)).unwrap();
            let (packet, source) = heard(&answers).unwrap();
            assert_eq!((&packet[quoted..quoted + 2], source), (&MARKS.port.to_be_bytes()[..], Some(to)));
            assert!(answers.receive(&mut [0; 64]).is_none(), "{family:?}: one has our mark");
        }
    });
}

#[test]
fn packets_of_another_link_are_ignored_and_a_lost_link_does_no_harm() {
    lab::test(Free, || {
        let _far = wire();
        sh("ip link add other type veth peer name end; ip link set other up; ip link set end up");
        let other = interfaces().unwrap().remove(&name("other")).unwrap();
        let mine = Socket::frames(&near(), EtherType::Arp, MARKS).unwrap();
        let others = Socket::frames(&other, EtherType::Arp, MARKS).unwrap();
        mine.send(&arp(1)).unwrap();
        assert!(heard(&mine).is_some() && others.receive(&mut [0; 64]).is_none());
        sh("ip link del other");
        assert!(others.send(&arp(1)).is_err() && others.receive(&mut [0; 64]).is_none());
    });
}

#[test]
fn only_neighbour_events_of_one_link_are_received() {
    lab::test(Free, || {
        let _far = wire();
        sh("ip link add other type veth peer name end; ip link set other up; ip link set end up");
        let socket = Socket::neighbour_events(&near()).unwrap();
        let quiet = |say: &str| {
            sh(say);
            assert!(socket.receive(&mut [0; 512]).is_none(), "{say}");
        };
        let doubted = |say: &str, expected: (&str, Option<Mac>)| {
            sh(say);
            let (datagram, _) = heard(&socket).unwrap();
            assert_eq!(neighbour_event(&datagram), Some((expected.0.parse().unwrap(), expected.1)), "{say}");
        };
        quiet(&format!("ip neigh replace 192.0.2.9 lladdr {FAR} dev near nud reachable"));
        quiet(&format!("ip neigh replace 192.0.2.9 lladdr {FAR} dev other nud stale"));
        quiet("ip neigh replace 192.0.2.8 dev other nud failed");
        quiet(&format!("ip neigh replace 192.0.2.7 lladdr {FAR} dev near nud permanent"));
        doubted(
            &format!("ip neigh replace 192.0.2.9 lladdr {NEAR} dev near nud stale"),
            ("192.0.2.9", Some(NEAR)),
        );
        doubted(
            &format!("ip neigh replace fd00:2::9 lladdr {FAR} dev near nud stale"),
            ("fd00:2::9", Some(FAR)),
        );
        doubted("ip neigh replace 192.0.2.9 dev near nud failed", ("192.0.2.9", None));
        // The kernel sends the same message after somebody has deleted an entry.
        doubted("ip neigh del 192.0.2.7 dev near", ("192.0.2.7", None));
    });
}
