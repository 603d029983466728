//! A unit of Type=notify is told that the node is ready, as flannel tells it (flannel-compat 9). Nothing else is told.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tracing::warn;

/// Does nothing where no systemd waits for it.
pub(crate) fn tell_ready() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&socket),
    };
    let send = |address: SocketAddr| -> io::Result<usize> {
        UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address)
    };
    if let Err(error) = address.and_then(send) {
        warn!("systemd cannot be told that this node is ready, at {}: {error}", socket.display());
    }
}
