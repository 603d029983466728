//! The one HTTP request that the lab needs: GET, from the network namespace of the calling thread.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub body: String,
}

/// None when nobody answers within `limit`.
pub(crate) fn get(server: SocketAddr, path: &str, limit: Duration) -> Option<Reply> {
    let mut stream = TcpStream::connect(server).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some(Reply { status: head.split(' ').nth(1)?.parse().ok()?, body: body.to_owned() })
}
