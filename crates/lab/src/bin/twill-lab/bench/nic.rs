//! Makes a node's port of the switch work like a network card. A kernel thread carries the node's packets on, and brings the
//! answers back; the time is not the sender's. Nothing else about the packets changes.

use std::os::fd::AsRawFd;
use std::process::Command;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Numbers of generic netlink: GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, CTRL_ATTR_FAMILY_ID.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_NAME: u16 = 2;
const FAMILY_ID: u16 = 1;
/// Number of ETHTOOL_MSG_FEATURES_SET (linux/ethtool_netlink.h); its attributes follow, level by level.
const SET_FEATURES: u8 = 12;
const HEADER: u16 = 1;
const DEVICE: u16 = 2;
const WANTED: u16 = 3;
const BITS: u16 = 3;
const BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_IS_ON: u16 = 3;
/// Flag NLA_F_NESTED of an attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// Flag NLM_F_REQUEST of a request.
const REQUEST: u16 = 1;
/// Features of the port. With the first one it has a NAPI, which can be a thread. With the second one the NAPI handles all
/// packets that carry their sender's socket.
const FEATURES: [&[u8]; 2] = [b"rx-gro\0", b"rx-udp-gro-forwarding\0"];
/// Length of the netlink header and the generic one in bytes.
const HEADERS: usize = 20;
/// Maximum wait for an answer in seconds.
const WAIT: i64 = 5;

/// Sets up `port`, which is in the lab's own namespace. The error says what the kernel does not do.
pub(super) fn of(port: &str) -> Result<(), String> {
    merge(port).map_err(|error| format!("{port}: {error}"))?;
    let line = r#"mount -t sysfs none /sys && echo 1 >"/sys/class/net/$1/threaded""#;
    let out = Command::new("unshare").args(["--mount", "sh", "-c", line, "sh", port]).output();
    let out = out.map_err(|error| format!("unshare: {error}"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    if out.status.success() { Ok(()) } else { Err(format!("{port} gets no thread: {}", said.trim())) }
}

fn merge(port: &str) -> Result<(), String> {
    let kind = SockProtocol::NetlinkGeneric;
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, kind);
    let netlink = netlink.map_err(|error| format!("netlink: {error}"))?;
    let patience = TimeVal::seconds(WAIT);
    setsockopt(&netlink, sockopt::ReceiveTimeout, &patience).map_err(|error| error.to_string())?;
    let ask = |message: &[u8]| {
        let mut answer = vec![0; 1 << 14];
        let length = send(netlink.as_raw_fd(), message, MsgFlags::empty())
            .and_then(|_| recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()));
        answer.truncate(length.map_err(|error| format!("netlink: {error}"))?);
        Ok::<_, String>(answer)
    };
    let family = ask(&message(CONTROL, GET_FAMILY, &attribute(FAMILY_NAME, b"ethtool\0")))?;
    let family = find(&family, FAMILY_ID).ok_or("the kernel has no ethtool over netlink")?;
    let bit = |name: &[u8]| nested(BIT, &[attribute(BIT_NAME, name), attribute(BIT_IS_ON, &[])].concat());
    let bits = FEATURES.map(bit).concat();
    let wanted = nested(WANTED, &nested(BITS, &bits));
    let device = nested(HEADER, &attribute(DEVICE, &[port.as_bytes(), &[0]].concat()));
    let answer = ask(&message(family, SET_FEATURES, &[device, wanted].concat()))?;
    // The answer holds the changed features, or is NLMSG_ERROR.
    match answer.get(4..6) == Some(&family.to_ne_bytes()) {
        true => Ok(()),
        false => Err("the kernel does not let it merge packets".into()),
    }
}

fn message(kind: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADERS + attributes.len()).unwrap_or_default();
    let mut message = [length.to_ne_bytes(), [0; 4], [0; 4], [0; 4], [command, 1, 0, 0]].concat();
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    message.extend(attributes);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or_default();
    let mut attribute = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, value)
}

/// Returns the number in an attribute of an answer.
fn find(answer: &[u8], kind: u16) -> Option<u16> {
    let word = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let mut at = HEADERS;
    while word(at + 2)? != kind {
        at += usize::from(word(at)?).next_multiple_of(4).max(4);
    }
    word(at + 4)
}
