//! Generator of texts that a store may hold: keys and JSON that are valid, nearly valid, truncated or noise. It also generates
//! leases and pools from anywhere in the address space.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use plan::Mac;
use plan::backend::Announced;
use plan::backend::vxlan::Vtep;
use plan::lease::Lease;
use plan::subnet::Subnet;

use super::tape::Tape;

const KEYS: [&str; 14] = [
    "10.244.2.0-24",
    "10.244.2.0-24&fd00:244:0:2::-64",
    "0.0.0.0-0&fd00:244:0:2::-64",
    "0.0.0.0-0",
    "10.244.2.9-24",
    "10.244.0.0-0",
    "10.244.2.0-32&::-0",
    "10.244.2.0-33",
    "10.244.2.0-024",
    "10.244.2.0-24&",
    "&fd00::-64",
    "10.244.2.0--24",
    "config",
    "",
];

const MEMBERS: [&str; 28] = [
    "PublicIP",
    "PublicIPv6",
    "BackendType",
    "BackendData",
    "BackendV6Data",
    "VNI",
    "VtepMAC",
    "Network",
    "IPv6Network",
    "SubnetLen",
    "SubnetMin",
    "SubnetMax",
    "IPv6SubnetLen",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "EnableIPv4",
    "EnableIPv6",
    "EnableNFTables",
    "Backend",
    "Type",
    "Port",
    "MTU",
    "GBP",
    "Learning",
    "DirectRouting",
    "VerifyDirect",
    "DirectMTU",
    "\\u0000",
];

const VALUES: [&str; 42] = [
    "null",
    "true",
    "false",
    "0",
    "1",
    "-1",
    "24",
    "30",
    "126",
    "127",
    "255",
    "256",
    "1500",
    "65536",
    "16777215",
    "4294967296",
    "1e309",
    "1.0",
    "18446744073709551616",
    "\"\"",
    "\"vxlan\"",
    "\"HOST-GW\"",
    "\"alloc\"",
    "\"wireguard\"",
    "\"192.0.2.2\"",
    "\"2001:db8::2\"",
    "\"::ffff:192.0.2.2\"",
    "\"0.0.0.0\"",
    "\"10.244.0.0/16\"",
    "\"10.244.9.9/13\"",
    "\"0.0.0.0/0\"",
    "\"255.255.255.255/32\"",
    "\"255.255.0.0/16\"",
    "\"fd00:244::/48\"",
    "\"ffff::/16\"",
    "\"::/1\"",
    "\"255.255.255.252\"",
    "\"0a:00:00:00:00:02\"",
    "\"0a00.0000.0002\"",
    "\"\\ud83d\\ude00\u{e9}\u{e9}\"",
    "[[]]",
    "{}",
];

/// Returns a lease's key: a known one, one with a changed letter, or noise.
pub(crate) fn key(tape: &mut Tape) -> String {
    let mut key = tape.pick(&KEYS).as_bytes().to_vec();
    spoil(tape, &mut key);
    String::from_utf8_lossy(&key).into_owned()
}

/// Returns JSON, mostly in the shape of a lease or a network config.
pub(crate) fn json(tape: &mut Tape) -> Vec<u8> {
    let mut text = if tape.once_in(12) {
        let depth = usize::from(tape.byte()) * 2;
        [b"{\"Backend\":".repeat(depth), b"[".repeat(depth)].concat()
    } else {
        object(tape, 2).into_bytes()
    };
    spoil(tape, &mut text);
    text
}

fn object(tape: &mut Tape, depth: usize) -> String {
    let members: Vec<String> = (0..tape.below(7))
        .map(|_| {
            let name = tape.pick(&MEMBERS);
            let name = if tape.once_in(4) { name.to_ascii_lowercase() } else { name.to_owned() };
            let value = if depth > 0 && tape.once_in(4) {
                object(tape, depth - 1)
            } else {
                tape.pick(&VALUES).to_owned()
            };
            format!("\"{name}\":{value}")
        })
        .collect();
    format!("{{{}}}", members.join(","))
}

/// Returns a network config that is mostly valid, so that the code after the parser is reached, too.
pub(crate) fn net_conf(tape: &mut Tape) -> Vec<u8> {
    if tape.once_in(3) {
        return json(tape);
    }
    let mut text = pools(tape).into_bytes();
    spoil(tape, &mut text);
    text
}

/// Returns a network config with pools anywhere, of which few are out of bounds.
pub(crate) fn pools(tape: &mut Tape) -> String {
    let (v4, v6) = (1 + tape.below(28), 1 + tape.below(124));
    let mut text = format!(r#""Network":"{}/{v4}","IPv6Network":"{}/{v6}""#, ipv4(tape), ipv6(tape));
    text += tape.pick(&["", r#","EnableIPv6":true"#, r#","EnableIPv6":true,"EnableIPv4":false"#]);
    if tape.once_in(2) {
        text += &format!(r#","SubnetLen":{}"#, v4 + 2 + tape.below(3));
    }
    if tape.once_in(2) {
        text += &format!(r#","IPv6SubnetLen":{}"#, v6 + 2 + tape.below(3));
    }
    if tape.once_in(8) {
        text += &format!(r#","SubnetMax":"{}""#, ipv4(tape));
    }
    text += tape.pick(&[
        "",
        r#","Backend":{"Type":"auto"}"#,
        r#","Backend":{"Type":"host-gw"}"#,
        r#","Backend":{"Type":"vxlan","MTU":118}"#,
    ]);
    format!("{{{text}}}")
}

/// Keeps most texts; changes one letter of some, truncates some, and replaces some by noise.
fn spoil(tape: &mut Tape, text: &mut Vec<u8>) {
    let at = usize::from(tape.byte()) % text.len().max(1);
    match tape.below(8) {
        5 if !text.is_empty() => text[at] = tape.byte(),
        6 => text.truncate(at),
        7 => *text = (0..tape.below(40)).map(|_| tape.byte()).collect(),
        _ => {}
    }
}

pub(crate) fn ipv4(tape: &mut Tape) -> Ipv4Addr {
    [tape.byte(), tape.byte(), tape.byte(), tape.byte()].into()
}

fn ipv6(tape: &mut Tape) -> Ipv6Addr {
    let mut octets = [0; 16];
    let count = 1 + tape.below(16);
    octets[..count].fill_with(|| tape.byte());
    octets[15] = tape.pick(&[0, 1, 0xff]);
    octets.into()
}

fn mac(tape: &mut Tape) -> Mac {
    let mut bytes = [0; 6];
    bytes.fill_with(|| tape.byte());
    Mac(bytes)
}

/// Returns any subnet that a key can express.
pub(crate) fn any_subnet(tape: &mut Tape) -> Subnet {
    let v4 = tape.below(33) as u8;
    let ipv4 = Ipv4Net::new_assert(ipv4(tape), v4);
    let v6 = tape.below(129) as u8;
    let ipv6 = Ipv6Net::new_assert(ipv6(tape), v6);
    let ipv4 = (ipv4 != Ipv4Net::default()).then_some(ipv4);
    match tape.below(3) {
        0 => Subnet { ipv4: Some(ipv4.unwrap_or(Ipv4Net::new_assert([10, 0, 0, 0].into(), 8))), ipv6: None },
        1 => Subnet { ipv4, ipv6: Some(ipv6) },
        _ => Subnet { ipv4: None, ipv6: Some(ipv6) },
    }
}

/// Returns any lease that a value can express.
pub(crate) fn any_lease(tape: &mut Tape) -> Lease {
    let subnet = any_subnet(tape);
    let public_ip = Some(ipv4(tape)).filter(|address| !address.is_unspecified());
    let public_ipv6 = tape.once_in(2).then(|| ipv6(tape)).filter(|address| !address.is_unspecified());
    let vtep = |tape: &mut Tape| {
        let vni = Some(u32::from(tape.byte()) << tape.below(17)).filter(|&vni| vni != 0);
        let port = tape.pick(&[None, Some(1), Some(8472), Some(u16::MAX)]);
        tape.once_in(2).then(|| Vtep { vni, port, mac: mac(tape) })
    };
    let announced = match tape.below(4) {
        0 => Announced::Vxlan { ipv4: vtep(tape), ipv6: vtep(tape) },
        1 => Announced::HostGw,
        2 => Announced::Nothing,
        _ => Announced::Other("wireguard \"\u{2028}".into()),
    };
    Lease { born: 7, written: 7, subnet, public_ip, public_ipv6, announced }
}

/// Returns leases near this subnet, of its size, smaller or larger, and some far away.
pub(crate) fn neighbouring_leases(tape: &mut Tape, inside: Subnet) -> Vec<Lease> {
    (0..tape.below(12))
        .map(|_| {
            let mut lease = any_lease(tape);
            if let Some(net) = inside.ipv4.filter(|_| !tape.once_in(6)) {
                let len = (net.prefix_len() + tape.below(3) as u8).saturating_sub(1).min(32);
                let step = (tape.below(9) as u32) << (32 - net.prefix_len().max(1));
                let address = Ipv4Addr::from(u32::from(net.addr()).wrapping_add(step));
                lease.subnet.ipv4 =
                    Some(Ipv4Net::new_assert(address, len)).filter(|net| net.prefix_len() > 0);
            }
            if let Some(net) = inside.ipv6.filter(|_| !tape.once_in(6)) {
                let len = (net.prefix_len() + tape.below(3) as u8).saturating_sub(1).min(128);
                let step = (tape.below(9) as u128) << (128 - net.prefix_len().max(1));
                let address = Ipv6Addr::from(u128::from(net.addr()).wrapping_add(step));
                lease.subnet.ipv6 = Some(Ipv6Net::new_assert(address, len));
            }
            lease
        })
        .collect()
}
