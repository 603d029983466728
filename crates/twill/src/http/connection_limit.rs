//! Limits for connections. At most a given number exist at a time: a new one replaces the one that has been idle longest.
//! Each address may open a given number per second; more of them, of all addresses, get cheap answers. Beyond that number the
//! kernel drops the requests of the addresses that are too quick, until the second is over.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

/// Maximum number of connections with full service that one address may open in a second.
const MAX_PER_SECOND: u32 = 20;
/// Maximum number of addresses that get full service within a second.
const MAX_ADDRESSES: usize = 256;
/// Maximum number of further connections in a second, of all addresses. Many clients may share one address, as pods
/// behind their node's do. A quick one must not keep the others from an answer.
const CROWD: u32 = 500;

const SECOND: Duration = Duration::from_secs(1);

/// Service that a connection gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// All answers.
    Full,
    /// Answers that cost next to nothing, because the address has opened many connections in this second.
    Cheap,
}

/// Connections of one kind of client.
pub(super) struct ConnectionLimit {
    most: usize,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    /// Open connections, oldest first.
    open: Vec<Connection>,
    next: u64,
    /// Beginning of the current second.
    second: Option<Instant>,
    /// Number of connections that each address has opened in this second.
    opened: HashMap<IpAddr, u32>,
    /// Number of connections with cheap service in this second.
    crowd: u32,
}

/// Connection that holds a slot.
struct Connection {
    number: u64,
    source: Option<IpAddr>,
    is_busy: Busy,
    task: AbortHandle,
}

/// Flag that is set while an answer is made; such time does not count as idle.
pub(super) type Busy = Arc<AtomicBool>;

/// Addresses whose requests for connections are to be dropped. An IPv6 address stands for its /64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flood {
    pub(super) sources: Vec<IpAddr>,
    pub(super) until: Instant,
}

/// Slot of a connection; dropping it frees the slot.
pub(super) struct Slot {
    limit: Arc<ConnectionLimit>,
    number: u64,
}

impl ConnectionLimit {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, connections: Mutex::default() })
    }

    /// Takes a slot for the task that `spawn` starts. If all slots are taken, the longest idle connection of the
    /// address with most idle ones is closed. Nothing is started if no connection is idle, or if too many were opened
    /// within a second; the addresses that opened them are then returned.
    pub(super) fn take(
        self: &Arc<Self>,
        source: Option<IpAddr>,
        spawn: impl FnOnce(Slot, Busy, Service) -> AbortHandle,
    ) -> Result<(), Flood> {
        let mut connections = self.lock();
        let source = source.map(network_of);
        let service = connections.service(source, Instant::now())?;
        if !connections.make_room(self.most) {
            return Ok(());
        }
        let number = connections.next;
        connections.next += 1;
        let is_busy = Busy::default();
        let task = spawn(Slot { limit: self.clone(), number }, is_busy.clone(), service);
        connections.open.push(Connection { number, source, is_busy, task });
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.limit.lock().open.retain(|connection| connection.number != self.number);
    }
}

impl Connections {
    /// Returns the service that a new connection gets, or an error if it is refused.
    fn service(&mut self, source: Option<IpAddr>, now: Instant) -> Result<Service, Flood> {
        let Some(source) = source else { return Ok(Service::Full) };
        let until = self.second.map(|second| second + SECOND).filter(|until| now < *until);
        let until = until.unwrap_or_else(|| {
            self.second = Some(now);
            self.opened.clear();
            self.crowd = 0;
            now + SECOND
        });
        if self.opened.len() < MAX_ADDRESSES || self.opened.contains_key(&source) {
            let opened = self.opened.entry(source).or_default();
            *opened += 1;
            if *opened <= MAX_PER_SECOND {
                return Ok(Service::Full);
            }
        }
        self.crowd += 1;
        if self.crowd <= CROWD {
            return Ok(Service::Cheap);
        }
        let quick = self.opened.iter().filter(|(_, opened)| **opened > MAX_PER_SECOND);
        Err(Flood { sources: quick.map(|(source, _)| *source).collect(), until })
    }

    fn make_room(&mut self, most: usize) -> bool {
        if self.open.len() < most {
            return true;
        }
        let idle = || self.open.iter().filter(|connection| !connection.is_busy.load(Ordering::Relaxed));
        let of = |source| idle().filter(|connection| connection.source == source).count();
        // The first match is the oldest one.
        let Some(most) = idle().map(|connection| of(connection.source)).max() else { return false };
        let Some(number) =
            idle().find(|connection| of(connection.source) == most).map(|connection| connection.number)
        else {
            return false;
        };
        if let Some(at) = self.open.iter().position(|connection| connection.number == number) {
            self.open.remove(at).task.abort();
        }
        true
    }
}

/// Returns the /64 of an IPv6 address, since its user usually has all of it. An IPv4 address stays as it is.
fn network_of(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    async fn hold(taken: Slot) {
        let _taken = taken;
        std::future::pending::<()>().await;
    }

    /// Takes a connection for `source`, busy or idle. Returns its service, or `None` if it was refused.
    fn take(limit: &Arc<ConnectionLimit>, source: Option<IpAddr>, busy: bool) -> Option<Service> {
        let mut given = None;
        let taken = limit.take(source, |taken, is_busy, service| {
            is_busy.store(busy, Ordering::Relaxed);
            given = Some(service);
            tokio::spawn(hold(taken)).abort_handle()
        });
        if let Err(flood) = taken {
            assert_eq!((given, flood.sources.is_empty()), (None, false));
        }
        given
    }

    fn numbers(limit: &ConnectionLimit) -> Vec<u64> {
        limit.lock().open.iter().map(|connection| connection.number).collect()
    }

    #[tokio::test]
    async fn the_address_with_most_connections_loses_its_oldest_idle_one() {
        let limit = ConnectionLimit::new(4);
        for source in ["192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.2", "192.0.2.3"] {
            assert!(take(&limit, ip(source), false).is_some());
        }
        assert_eq!(numbers(&limit), [0, 2, 3, 4]);
        take(&limit, ip("192.0.2.4"), true);
        assert_eq!(numbers(&limit), [0, 3, 4, 5]);
        take(&limit, ip("192.0.2.5"), true);
        assert_eq!(numbers(&limit), [3, 4, 5, 6]);
        tokio::task::yield_now().await;
        assert_eq!(numbers(&limit), [3, 4, 5, 6], "whoever was sent away gives no other's place back");
    }

    #[tokio::test]
    async fn a_busy_connection_is_not_closed_for_a_new_one() {
        let limit = ConnectionLimit::new(2);
        assert!(take(&limit, None, true).is_some());
        assert!(take(&limit, None, true).is_some());
        assert_eq!(take(&limit, None, false), None);
        assert_eq!(numbers(&limit), [0, 1]);
    }

    #[tokio::test]
    async fn a_flood_from_one_address_keeps_no_other_client_out() {
        let limit = ConnectionLimit::new(8);
        let flood: Vec<_> = (0..1000).filter_map(|_| take(&limit, ip("192.0.2.1"), false)).collect();
        let cheap = flood.iter().filter(|service| **service == Service::Cheap).count();
        assert_eq!([flood.len(), cheap], [(MAX_PER_SECOND + CROWD) as usize, CROWD as usize]);
        let refused = limit.take(ip("192.0.2.1"), |_, _, _| unreachable!("it is refused"));
        let flood = refused.unwrap_err();
        assert_eq!(flood.sources, [ip("192.0.2.1").unwrap()]);
        assert!(flood.until > Instant::now() && flood.until <= Instant::now() + SECOND);
        let many = (0..1000_u16).filter_map(|host| take(&limit, ip(&format!("fd00::{host:x}")), false));
        assert_eq!(many.count(), MAX_PER_SECOND as usize, "one /64 counts as one");
        assert_eq!(take(&limit, ip("192.0.2.2"), false), Some(Service::Full));
        for host in 0..1000_u16 {
            take(&limit, ip(&format!("fd00:0:{host:x}::1")), false);
        }
        assert!(limit.lock().opened.len() <= MAX_ADDRESSES);
    }

    /// Pods of a node share its address, and many addresses may be of one attacker.
    #[tokio::test]
    async fn a_quick_client_keeps_no_client_of_the_same_or_a_further_address_out() {
        let limit = ConnectionLimit::new(8);
        for _ in 0..10 * MAX_PER_SECOND {
            take(&limit, ip("192.0.2.1"), false);
        }
        assert_eq!(take(&limit, ip("192.0.2.1"), false), Some(Service::Cheap));
        for host in 0..MAX_ADDRESSES {
            take(&limit, ip(&format!("fd00:0:{host:x}::1")), false);
        }
        assert_eq!(take(&limit, ip("192.0.2.2"), false), Some(Service::Cheap));
    }
}
