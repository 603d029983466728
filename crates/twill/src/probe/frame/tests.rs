//! Bytes compared with the RFCs, and readers given arbitrary bytes.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const NUMBER: Number = Number { sequence: 9, cookie: 0x0102_0304_0506_0708 };
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

fn ends(from: &str, to: &str) -> Endpoints {
    Endpoints { from: from.parse().unwrap(), to: to.parse().unwrap() }
}

fn both() -> [Endpoints; 2] {
    [ends("10.244.1.0", "10.244.2.0"), ends("fd00:1::", "fd00:2::")]
}

/// Returns a peer's reply to an echo request.
fn reply(ends: Endpoints, request: &[u8]) -> Vec<u8> {
    let (header, kind, protocol) = if ends.to.is_ipv4() { (IPV4, 0, ICMP) } else { (IPV6, 129, ICMPV6) };
    let mut icmp = request[header..].to_vec();
    icmp[..4].copy_from_slice(&[kind, 0, 0, 0]);
    let ends = Endpoints { from: ends.to, to: ends.from };
    write_checksum(&mut icmp, ends, protocol, 2);
    packet(ends, protocol, TTL, &icmp)
}

/// Returns the ICMP error of a machine on the way about a packet.
fn error(by: Endpoints, head: [u8; 8], about: &[u8]) -> Vec<u8> {
    let mut icmp = [&head[..], about].concat();
    let protocol = if by.from.is_ipv4() { ICMP } else { ICMPV6 };
    write_checksum(&mut icmp, by, protocol, 2);
    packet(by, protocol, TTL, &icmp)
}

#[test]
fn an_echo_has_the_requested_size_and_its_reply_is_read() {
    for ends in both() {
        for size in [64, 65, 1450, 9000] {
            let request = echo(ends, 7, NUMBER, size);
            assert_eq!(request.len(), usize::from(size));
            assert_eq!(read_packet(None, &request), None, "a question is no answer");
            let expected = Reply::Echo { from: ends.to, id: 7, number: NUMBER };
            assert_eq!(read_packet(None, &reply(ends, &request)), Some(expected));
        }
    }
}

#[test]
fn an_ipv4_header_has_a_checksum_and_forbids_fragments() {
    let request = echo(both()[0], 7, NUMBER, 64);
    assert_eq!(fold(sum(&request[..IPV4])), 0);
    assert_eq!(request[6..8], [0x40, 0]);
}

#[test]
fn cut_or_damaged_packets_are_ignored() {
    for ends in both() {
        let whole = reply(ends, &echo(ends, 7, NUMBER, 64));
        for length in 0..whole.len() {
            assert_eq!(read_packet(None, &whole[..length]), None, "{length}");
        }
        let icmp = if ends.to.is_ipv4() { IPV4 } else { IPV6 };
        for at in icmp..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            assert_eq!(read_packet(None, &damaged), None, "{at}");
        }
        // Frames are padded, so bytes after the packet are allowed.
        assert!(read_packet(None, &[&whole[..], &[1, 2, 3]].concat()).is_some());
    }
    let mut fragment = reply(both()[0], &echo(both()[0], 7, NUMBER, 64));
    fragment[6] = 0x20;
    assert_eq!(read_packet(None, &fragment), None);
}

/// Makes a packet whose header and checksum are right, so that its payload is read.
fn sealed(v6: bool, icmpv6: bool, mut payload: Vec<u8>) -> Vec<u8> {
    let (ends, protocol) = (both()[usize::from(v6)], if icmpv6 { ICMPV6 } else { ICMP });
    if payload.len() >= 4 {
        payload[2..4].copy_from_slice(&[0, 0]);
        write_checksum(&mut payload, ends, protocol, 2);
    }
    packet(ends, protocol, FROM_SEGMENT, &payload)
}

/// Arbitrary bytes, many of them with the beginning of a packet that is read.
fn anything() -> impl Strategy<Value = Vec<u8>> {
    let kinds = select(vec![0, 1, 2, 3, 11, 129, ADVERTISEMENT, 0x45, 0x4f, 0x60]);
    (kinds, vec(any::<u8>(), 0..160), any::<bool>()).prop_map(|(kind, mut bytes, like)| {
        if let Some(first) = bytes.first_mut().filter(|_| like) {
            *first = kind;
        }
        // The packet that an error quotes begins with a header, too.
        if let Some(quoted) = bytes.get_mut(HEADER).filter(|_| like) {
            *quoted = if kind == 3 { 0x45 } else { 0x60 };
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) })]

    #[test]
    fn arbitrary_bytes_make_no_reader_panic(bytes in anything(), v6: bool, icmpv6: bool) {
        let whole = sealed(v6, icmpv6, bytes.clone());
        for from in both().map(|ends| ends.from) {
            read_icmp(from, &bytes);
        }
        for kind in [EtherType::Arp, EtherType::Ipv4, EtherType::Ipv6] {
            read_frame(kind, Some(MAC), &bytes);
            read_frame(kind, None, &whole);
        }
    }
}

#[test]
fn an_error_leads_to_the_packet_that_it_quotes() {
    let [v4, v6] = both();
    let by = [ends("192.0.2.9", "10.244.1.0"), ends("fd00:9::9", "fd00:1::")];
    for (ends, by, head, mtu) in [
        (v4, by[0], [3, 4, 0, 0, 0, 0, 5, 0x78], Some(1400)),
        (v4, by[0], [3, 1, 0, 0, 0, 0, 0, 0], None),
        (v4, by[0], [11, 0, 0, 0, 0, 0, 0, 0], None),
        (v6, by[1], [2, 0, 0, 0, 0, 0, 5, 0x78], Some(1400)),
        (v6, by[1], [1, 0, 0, 0, 0, 0, 0, 0], None),
    ] {
        let about = echo(ends, 7, NUMBER, 1450);
        let header = if ends.to.is_ipv4() { IPV4 } else { IPV6 };
        // A router may quote as little as this.
        let bytes_of = error(by, head, &about[..header + HEADER]);
        let quoted = |cookie| Quoted::Echo { to: ends.to, id: 7, sequence: 9, cookie };
        let received = |cookie| Some(Reply::Error { by: by.from, mtu, port: false, quoted: quoted(cookie) });
        assert_eq!(read_packet(None, &bytes_of), received(None));
        let more = error(by, head, &about[..header + 2 * HEADER]);
        assert_eq!(read_packet(None, &more), received(Some(NUMBER.cookie)));
        let cut = error(by, head, &about[..header + HEADER - 1]);
        assert_eq!(read_packet(None, &cut), None);
    }
}

#[test]
fn an_mtu_below_the_least_possible_one_is_ignored() {
    let by = [ends("192.0.2.9", "10.244.1.0"), ends("fd00:9::9", "fd00:1::")];
    for (ends, by, kind, least) in [(both()[0], by[0], [3, 4], 576_u16), (both()[1], by[1], [2, 0], 1280)] {
        let received = |mtu: u16| {
            let [high, low] = mtu.to_be_bytes();
            let bytes_of = error(by, [kind[0], kind[1], 0, 0, 0, 0, high, low], &echo(ends, 7, NUMBER, 1450));
            read_packet(None, &bytes_of)
        };
        assert!(matches!(received(least), Some(Reply::Error { mtu: Some(mtu), .. }) if mtu == least));
        assert_eq!((received(0), received(least - 1)), (None, None));
    }
}

#[test]
fn a_closed_port_is_reported_with_the_length_of_the_datagram() {
    for (ends, head) in both().into_iter().zip([[3, 3], [1, 4]]) {
        let about = datagram(ends, 4000, 33434, &[0; 9]);
        let back = Endpoints { from: ends.to, to: ends.from };
        let bytes_of = error(back, [head[0], head[1], 0, 0, 0, 0, 0, 0], &about);
        let quoted = Quoted::Datagram { to: ends.to, from_port: 4000, length: 17 };
        let expected = Reply::Error { by: ends.to, mtu: None, port: true, quoted };
        assert_eq!(read_packet(None, &bytes_of), Some(expected));
    }
}

#[test]
fn a_datagrams_checksum_is_right() {
    for ends in both() {
        let whole = datagram(ends, 4000, 33434, &[1, 2, 3]);
        let header = if ends.to.is_ipv4() { IPV4 } else { IPV6 };
        assert_eq!(checksum(&whole[header..], ends, UDP), 0);
        assert_ne!(whole[header + 6..header + 8], [0, 0], "none at all");
    }
}

#[test]
fn an_arp_request_has_our_address_and_only_replies_are_read() {
    let [own, target] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
    let request = arp_request(MAC, own, target);
    assert_eq!((&request[8..14], &request[14..18]), (&MAC.0[..], &own.octets()[..]));
    assert_eq!(read_arp(&request), None);
    let mut reply = arp_request(OTHER, target, own);
    reply[7] = 2;
    let expected = Some(Reply::Neighbour { ip: target.into(), mac: OTHER });
    assert_eq!(read_frame(EtherType::Arp, Some(OTHER), &[&reply[..], &[0; 18]].concat()), expected);
    (0..ARP).for_each(|length| assert_eq!(read_arp(&reply[..length]), None));
    reply[8] = 1;
    assert_eq!(read_arp(&reply), None, "a group cannot be a neighbour");
}

#[test]
fn neighbour_advertisements_count_from_the_segment_alone() {
    let Endpoints { from: IpAddr::V6(own), to: IpAddr::V6(target) } = ends("fd00::1", "fd00::12:3456") else {
        panic!("IPv6")
    };
    let to_all = solicitation(MAC, own, target, false);
    assert_eq!(array::<16>(&to_all, 24), Some("ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap().octets()));
    assert_eq!(group_of(target.into()), Mac([0x33, 0x33, 0xff, 0x12, 0x34, 0x56]));
    assert_eq!(array::<16>(&solicitation(MAC, own, target, true), 24), Some(target.octets()));
    let back = Endpoints { from: target.into(), to: own.into() };
    let advert = |ttl, option: &[u8]| {
        let mut icmp = [&[ADVERTISEMENT, 0, 0, 0, 0x60, 0, 0, 0][..], &target.octets(), option].concat();
        write_checksum(&mut icmp, back, ICMPV6, 2);
        packet(back, ICMPV6, ttl, &icmp)
    };
    let named = [&[2, 1][..], &OTHER.0].concat();
    let received = |mac| Some(Reply::Neighbour { ip: target.into(), mac });
    assert_eq!(read_packet(Some(MAC), &advert(255, &named)), received(OTHER));
    assert_eq!(read_packet(Some(MAC), &advert(255, &[])), received(MAC), "it comes from there");
    assert_eq!(read_packet(None, &advert(255, &[])), None);
    assert_eq!(read_packet(Some(MAC), &advert(254, &named)), None, "it was forwarded");
}
