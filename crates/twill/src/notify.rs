//! Notifications to the service manager, if there is one (sd_notify(3)): ready, status, watchdog, stopping. Only the
//! reconcile thread sends the watchdog message, so a stalled reconcile loop gets the daemon restarted. No function here
//! blocks.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::OnceLock;
use std::time::Duration;

/// Socket that is connected to the service manager; empty if the connection failed.
static MANAGER: OnceLock<UnixDatagram> = OnceLock::new();

/// Watchdog timeout that the service manager set for this process (`WATCHDOG_USEC`). It restarts the daemon if [`alive`]
/// is not called for this long.
pub(crate) fn watchdog_timeout() -> Option<Duration> {
    let ours = env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
    let limit: u64 = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    (ours && limit > 0).then(|| Duration::from_micros(limit))
}

/// Sends the watchdog message and extends the start timeout. The reconcile loop calls it, also while it waits for the
/// store, which may take longer than a usual start.
pub(crate) fn alive() {
    if let Some(limit) = watchdog_timeout() {
        // A lost message is made good by the next one.
        let _ = send(&format!("WATCHDOG=1\nEXTEND_TIMEOUT_USEC={}", limit.as_micros()));
    }
}

/// Reports to the service manager that the daemon stops.
pub(crate) fn stopping() {
    let _ = send("STOPPING=1\nSTATUS=stopping; routes and devices stay as they are");
}

/// Connects to the service manager for the life of the process. After `confine` this process can reach no abstract unix
/// address of other processes.
pub(crate) fn connect() {
    if let Some(address) = socket().and_then(|name| address(&name).ok())
        && let Ok(socket) = UnixDatagram::unbound()
        && socket.set_nonblocking(true).and_then(|()| socket.connect_addr(&address)).is_ok()
    {
        let _ = MANAGER.set(socket);
    }
}

/// Sends a message such as `READY=1\nSTATUS=ready, 3 peers`. Does nothing without a service manager. Fails if the socket
/// does.
pub(crate) fn send(what: &str) -> io::Result<()> {
    let Some(name) = socket() else { return Ok(()) };
    if MANAGER.get().is_some_and(|manager| manager.send(what.as_bytes()).is_ok()) {
        return Ok(());
    }
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(what.as_bytes(), &address(&name)?).map(drop)
}

fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(name),
    }
}

/// Returns the address of the service manager's socket; `None` if there is no service manager.
pub(crate) fn socket() -> Option<OsString> {
    env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())
}
