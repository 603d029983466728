//! Our lease: acquired at start, kept while the daemon runs, with the network config that it was acquired under. `plan`
//! and the store choose its subnet.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use plan::backend::Announced;
use plan::lease::Lease;
use plan::netconf::NetConf;
use plan::node::{Node, Uplink};
use plan::subnet_alloc::{self, Requester};
use plan::warning::StoreFault;
use plan::{Mac, PeerPath};
use store::{AcceptableSubnet, Announce, Claim, Store, StoreError};
use tokio::runtime::Handle;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tracing::warn;

use crate::trigger::{Cause, CauseSender};

/// Maximum time until the store reports our own write.
const ECHO_TIMEOUT: Duration = Duration::from_secs(5);
/// Minimum time between two re-acquisitions of our lease; an earlier request would only read. Peers keep a vanished lease
/// for 2 s, in which it may vanish several times.
const RETAKE_INTERVAL: Duration = Duration::from_millis(250);
/// Minimum times between two writes of our lease over another daemon's: after the first, second, third and each further
/// write. A daemon with our address would undo them for ever.
const OVERWRITE_PAUSES: [Duration; 4] =
    [Duration::from_secs(5), Duration::from_secs(15), Duration::from_secs(60), Duration::from_secs(600)];
/// Time after which that count begins again.
const OVERWRITE_RESET: Duration = Duration::from_secs(3600);
/// Minimum time between two writes of our lease that only add or remove the port because of peers' ports.
const PORT_PAUSE: Duration = Duration::from_secs(60);
/// Time for which the warning about an overwritten lease stays although the lease is ours again.
const CONTEST_WARNING: Duration = Duration::from_secs(150);
/// Maximum time until a refused request for the lease is repeated. The first repetitions come sooner, since a store that
/// is unreachable for a moment refuses as well.
const RETRY: Duration = Duration::from_secs(5);

/// The store, for threads other than its own.
#[derive(Clone)]
pub(crate) struct StoreHandle {
    pub(crate) store: Store,
    /// Runtime of the thread that talks to the store.
    pub(crate) tasks: Handle,
    /// Receives a cause when an answer has arrived.
    pub(crate) cause_sender: CauseSender,
}

impl StoreHandle {
    /// Reads the network config from the store. Blocks until it answers or fails.
    pub(crate) fn net_conf(&self) -> Result<NetConf, StoreError> {
        self.tasks.block_on(self.store.net_conf())
    }

    /// Reads the leases of the config's networks from the store. Blocks until it answers or fails.
    pub(crate) fn leases(&self, conf: &NetConf) -> Result<Arc<[Lease]>, StoreError> {
        self.tasks.block_on(self.store.leases(conf))
    }

    /// Requests our lease in the background.
    fn request_lease(&self, claim: Claim) -> oneshot::Receiver<Result<Lease, StoreError>> {
        let (sender, answer) = oneshot::channel();
        let Self { store, cause_sender, .. } = self.clone();
        self.tasks.spawn(async move {
            let _ = sender.send(store.acquire(claim).await);
            cause_sender.send(Cause::Leases);
        });
        answer
    }
}

/// Our lease, with the data that a request for it needs.
pub(crate) struct OwnLease {
    source: StoreHandle,
    conf: NetConf,
    requester: Requester,
    /// Lease that the store last accepted from us, and the time of the answer.
    written: Option<(Lease, Instant)>,
    /// Leases that we held before, until the store reports the one that we hold now.
    former: Vec<Lease>,
    /// Warning that another daemon has overwritten our lease, and the end of the warning.
    contest: Option<(StoreFault, Instant)>,
    /// Time at which our lease was last written over another daemon's, and the number of such writes before it.
    retaken: Option<(Instant, usize)>,
    /// Time at which our lease was last written only to add or remove the port.
    ported: Option<Instant>,
    pending: Option<PendingRequest>,
    /// Reason why the lease cannot be acquired, and the time of the next attempt.
    refused: Option<(StoreFault, Instant)>,
    /// Number of refused attempts since the lease was last in order.
    attempts: u32,
}

/// Request that is under way.
struct PendingRequest {
    answer: oneshot::Receiver<Result<Lease, StoreError>>,
    defect: Defect,
}

/// Defect of our lease in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    /// The lease was missing.
    Gone,
    /// The lease held values that we no longer announce.
    Former,
    /// The lease differed only in whether it names the default port.
    Port,
    /// The lease of this node had been written by another daemon.
    Rival,
}

impl Defect {
    fn log_text(self) -> &'static str {
        match self {
            Self::Gone => "had disappeared from the store; wrote it again",
            _ => "differed from what this node announces; wrote it again",
        }
    }
}

/// State of our lease.
#[derive(Debug, Default)]
pub(crate) struct OwnLeaseStatus {
    pub(crate) fault: Option<StoreFault>,
    /// Time at which to check the lease again even without news.
    pub(crate) due: Option<Instant>,
}

impl OwnLeaseStatus {
    /// Returns the state of a lease that ends at `end` and cannot be renewed.
    pub(crate) fn until(end: Option<SystemTime>, now: SystemTime) -> Self {
        let Some(end) = end else { return Self::default() };
        match end.duration_since(now) {
            Ok(left) if !left.is_zero() => Self { fault: None, due: Instant::now().checked_add(left) },
            _ => Self { fault: Some(StoreFault::OwnLeaseOver), due: None },
        }
    }
}

impl OwnLease {
    pub(crate) fn new(source: StoreHandle, conf: NetConf, requester: Requester) -> Self {
        Self {
            source,
            conf,
            requester,
            written: None,
            former: Vec::new(),
            contest: None,
            retaken: None,
            ported: None,
            pending: None,
            refused: None,
            attempts: 0,
        }
    }

    /// Returns the network config in force.
    pub(crate) fn conf(&self) -> &NetConf {
        &self.conf
    }

    /// Returns the network config that the store has now, if it can be read without waiting (a directory).
    pub(crate) fn conf_in_store(&self) -> Option<Result<NetConf, StoreError>> {
        self.source.store.net_conf_without_waiting()
    }

    /// Returns the lease that we hold, as far as we know.
    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.requester.held.as_ref()
    }

    /// Sets the addresses of another uplink; the next `maintain` announces them.
    pub(crate) fn set_addresses(&mut self, uplink: &Uplink) {
        let Requester { public_ip, public_ipv6, .. } = Requester::at(uplink);
        (self.requester.public_ip, self.requester.public_ipv6) = (public_ip, public_ipv6);
    }

    /// Records that `lease` is ours, also in the store's client.
    pub(crate) fn with_lease(mut self, lease: Lease) -> (Self, Lease) {
        self.requester.previous = Some(lease.subnet);
        self.accept(lease.clone());
        // From now on the lease that we hold is better evidence.
        self.requester.vteps.clear();
        self.source.store.set_own_lease(&lease, &self.conf);
        (self, lease)
    }

    /// Replaces the lease that we hold, and returns the one before. A subnet that stays ours keeps its age, also if its
    /// entry had to be made again.
    fn accept(&mut self, lease: Lease) -> Option<Lease> {
        let before = self.requester.held.take();
        let known = before.as_ref().filter(|before| before.subnet == lease.subnet).map(|before| before.born);
        let born = earlier(lease.born, known.unwrap_or_default());
        self.requester.held = Some(Lease { born, written: lease.written.max(lease.born), ..lease });
        before
    }

    /// Acquires a lease and blocks until the store answers. No peer is admitted yet, so all leases that fit the network
    /// count. `alone` is true if no other machine of the segment answers for our address.
    pub(crate) fn acquire(&self, macs: impl Macs, dice: u64, alone: bool) -> Result<Lease, StoreError> {
        let (conf, config) = (self.conf.clone(), self.conf.config());
        let announce = move |held: Option<&Lease>, others: &[&Lease]| {
            let fits = |lease: &&&Lease| subnet_alloc::fits(&conf, &lease.subnet);
            let others: Vec<&Lease> = others.iter().filter(fits).copied().collect();
            let macs = macs(held.map(|held| &held.announced));
            config.backend.announced(config.families(), macs, others.iter().map(|lease| &lease.announced))
        };
        let mut claim = self.claim(Box::new(announce), AcceptableSubnet::Any { dice }, [].into());
        claim.requester.alone = alone;
        self.source.tasks.block_on(self.source.store.acquire(claim))
    }

    fn claim(&self, announce: Box<Announce>, choice: AcceptableSubnet, listed: Arc<[Lease]>) -> Claim {
        let (conf, requester) = (self.conf.clone(), self.requester.clone());
        Claim { conf, requester, announce, choice, listed }
    }

    /// Adopts a config that `check_conf_change` has accepted; the next `maintain` announces the change.
    pub(crate) fn set_conf(&mut self, conf: &NetConf) {
        self.conf = conf.clone();
        self.ported = None;
    }

    /// Returns true if `conf` differs from the config in force. The error names a key that cannot change while pods run.
    /// A node changes to or from `alloc`, which has no routes, only if it has no `peers` to lose.
    pub(crate) fn check_conf_change(&self, conf: &NetConf, peers: usize) -> Result<bool, StoreFault> {
        for (now, then, key) in [
            (&self.conf.ipv4, &conf.ipv4, "Network or SubnetLen"),
            (&self.conf.ipv6, &conf.ipv6, "IPv6Network or IPv6SubnetLen"),
        ] {
            if now.as_ref().map(|pool| (pool.network, pool.len))
                != then.as_ref().map(|pool| (pool.network, pool.len))
            {
                return Err(StoreFault::ConfigRefused { what: key.into() });
            }
        }
        if peers > 0 && self.conf.backend.reaches_peers() != conf.backend.reaches_peers() {
            return Err(StoreFault::ConfigRefused { what: "Backend Type from or to alloc".into() });
        }
        Ok(self.conf != *conf)
    }

    /// Requests our lease again if it is missing from `listed`, and rewrites it if it differs from what we announce. The
    /// subnet stays the same, since pods have addresses from it. Returns the fault if that is not possible. `admitted`
    /// are the peers, sorted by subnet; leases of nodes that are not admitted do not count.
    pub(crate) fn maintain(
        &mut self,
        listed: &Arc<[Lease]>,
        node: &Node,
        admitted: &[PeerPath],
        now: Instant,
    ) -> OwnLeaseStatus {
        self.take_answer(now);
        let macs = [node.vtep.unwrap_or_default(), node.vtep_v6.unwrap_or_default()];
        let is_peer = |subnet: IpNet| admitted.binary_search_by_key(&subnet, |peer| peer.subnet).is_ok();
        let peers =
            listed.iter().filter(|lease| lease.subnet.nets().any(is_peer) && !self.requester.owns(lease));
        let config = self.conf.config();
        let peers = peers.map(|lease| &lease.announced);
        let announced = config.backend.announced(config.families(), macs, peers);
        let defect = match self.find_defect(listed, node, &announced, now) {
            Ok(status) => {
                (self.refused, self.attempts) = (None, 0);
                return status;
            }
            Err(defect) => defect,
        };
        if let Some((fault, until)) = self.refused.clone()
            && (self.pending.is_some() || now < until)
        {
            return OwnLeaseStatus { fault: Some(fault), due: Some(until.max(now + RETAKE_INTERVAL)) };
        }
        if self.pending.is_none() {
            match defect {
                Defect::Rival => {
                    let known = self.retaken.filter(|(at, _)| now - *at < OVERWRITE_RESET);
                    self.retaken = Some((now, known.map_or(0, |(_, times)| times + 1)));
                }
                Defect::Port => self.ported = Some(now),
                Defect::Gone | Defect::Former => {}
            }
            let announce = move |_: Option<&Lease>, _: &[&Lease]| announced.clone();
            let claim = self.claim(Box::new(announce), AcceptableSubnet::Only(node.subnet), listed.clone());
            self.pending = Some(PendingRequest { answer: self.source.request_lease(claim), defect });
        }
        self.status(now)
    }

    /// Returns the defect of our lease if it can be corrected now by writing the lease; otherwise the lease's state.
    fn find_defect(
        &mut self,
        listed: &[Lease],
        node: &Node,
        announced: &Announced,
        now: Instant,
    ) -> Result<OwnLeaseStatus, Defect> {
        // The store may report our write late, especially if the route to it changes with our address.
        let standing = listed.iter().find(|lease| lease.subnet == node.subnet);
        if let (Some(standing), Some(held)) = (standing, &mut self.requester.held)
            && held.has_same_data(standing)
        {
            self.former.clear();
            held.born = earlier(held.born, standing.born);
            held.written = standing.written.max(standing.born);
        }
        // A lease that only overlaps ours takes nothing from a running node. Peers decide which of both they believe.
        if let Some(holder) = standing.filter(|lease| !self.requester.owns(lease) && !self.is_former(lease)) {
            let address = holder.public_ip.map(IpAddr::V4).or(holder.public_ipv6.map(IpAddr::V6));
            let address = address.map_or("somebody".into(), |address| address.to_string());
            let subnet = node.subnet.to_string().into();
            let fault = StoreFault::OwnLeaseTaken { subnet, holder: address.into() };
            return Ok(OwnLeaseStatus { fault: Some(fault), due: Some(now + RETRY) });
        }
        let written =
            self.written.as_ref().filter(|(what, _)| self.matches(what, announced)).map(|(_, at)| *at);
        let echo = match standing {
            None => RETAKE_INTERVAL,
            Some(_) if self.former.is_empty() => Duration::ZERO,
            Some(_) => ECHO_TIMEOUT,
        };
        match standing {
            Some(lease) if self.matches(lease, announced) => Ok(self.status(now)),
            _ if written.is_some_and(|at| now - at < echo) => {
                Ok(OwnLeaseStatus { due: written.map(|at| at + echo), ..self.status(now) })
            }
            None => Err(Defect::Gone),
            Some(lease) if self.matches(lease, &announced.spelled_as(&lease.announced)) => {
                match self.ported {
                    Some(at) if now - at < PORT_PAUSE => {
                        Ok(OwnLeaseStatus { due: Some(at + PORT_PAUSE), ..self.status(now) })
                    }
                    _ => Err(Defect::Port),
                }
            }
            Some(lease) if self.is_former(lease) => Err(Defect::Former),
            Some(lease) => self.contested(self.describe(lease), node, now),
        }
    }

    /// Handles a lease that another daemon has overwritten with `theirs`. It is written again after ever longer pauses.
    fn contested(&mut self, theirs: String, node: &Node, now: Instant) -> Result<OwnLeaseStatus, Defect> {
        let subnet = node.subnet.to_string().into();
        let fault = StoreFault::OwnLeaseContested { subnet, theirs: theirs.into() };
        self.contest = Some((fault, now + CONTEST_WARNING));
        let pause = |times: usize| OVERWRITE_PAUSES[times.min(OVERWRITE_PAUSES.len() - 1)];
        let until = self.retaken.map(|(at, times)| at + pause(times)).filter(|until| now < *until);
        match until {
            Some(until) => Ok(OwnLeaseStatus { due: Some(until), ..self.status(now) }),
            None => Err(Defect::Rival),
        }
    }

    /// Takes the answer to the request, if it has arrived.
    fn take_answer(&mut self, now: Instant) {
        let Some(pending) = &mut self.pending else { return };
        match pending.answer.try_recv() {
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Closed) => {}
            Ok(Ok(lease)) => {
                warn!("our lease {} {}", lease.subnet, pending.defect.log_text());
                self.written = Some((lease.clone(), now));
                let before = self.accept(lease);
                self.former.extend(before);
                (self.refused, self.attempts) = (None, 0);
            }
            Ok(Err(error)) => {
                let why = error.to_string().into();
                let fault = if pending.defect == Defect::Gone {
                    StoreFault::OwnLeaseGone { why }
                } else {
                    StoreFault::OwnLeaseStale { why }
                };
                // A refused write took nothing back, so the next attempt need not wait for a pause.
                if pending.defect == Defect::Rival {
                    self.retaken = None;
                }
                let pause = RETAKE_INTERVAL * 2_u32.pow(self.attempts.min(10));
                self.attempts += 1;
                self.refused = Some((fault, now + pause.min(RETRY)));
            }
        }
        self.pending = None;
    }

    /// Returns the state of a lease that is in order or just written. It has a warning if another daemon writes it, too.
    fn status(&mut self, now: Instant) -> OwnLeaseStatus {
        self.contest = self.contest.take().filter(|(_, until)| now < *until);
        let (fault, due) = self.contest.clone().unzip();
        OwnLeaseStatus { fault, due }
    }

    /// Returns true if we wrote that lease ourselves, under this or an earlier config or uplink.
    fn is_former(&self, lease: &Lease) -> bool {
        self.requester.held.iter().chain(&self.former).any(|held| held.has_same_data(lease))
    }

    /// Describes what another writer has put into our lease: its address, else its VTEP MAC, else its backend.
    fn describe(&self, lease: &Lease) -> String {
        let Requester { public_ip, public_ipv6, .. } = self.requester;
        let mac = lease.announced.macs().into_iter().flatten().next();
        let ipv4 = lease.public_ip.filter(|_| lease.public_ip != public_ip).map(IpAddr::V4);
        let ipv6 = lease.public_ipv6.filter(|_| lease.public_ipv6 != public_ipv6).map(IpAddr::V6);
        match (ipv4.or(ipv6), mac) {
            (Some(address), _) => format!("address {address}"),
            (None, Some(mac)) => format!("VTEP MAC {mac}"),
            (None, None) => format!("backend {:?}", lease.announced.backend_type()),
        }
    }

    /// Returns true if the lease holds exactly the addresses and data that we announce.
    fn matches(&self, lease: &Lease, announced: &Announced) -> bool {
        let Requester { public_ip, public_ipv6, .. } = self.requester;
        (lease.public_ip, lease.public_ipv6, &lease.announced) == (public_ip, public_ipv6, announced)
    }
}

/// Returns the earlier of two ages of a lease; 0 is an unknown one.
fn earlier(one: u64, other: u64) -> u64 {
    [one, other].into_iter().filter(|born| *born > 0).min().unwrap_or_default()
}

/// Function that gives the MACs to announce (IPv4, IPv6) for the data of the lease that we hold.
pub(crate) trait Macs: Fn(Option<&Announced>) -> [Mac; 2] + Send + Sync + 'static {}
impl<F: Fn(Option<&Announced>) -> [Mac; 2] + Send + Sync + 'static> Macs for F {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use plan::LinkName;
    use store::Dir;

    use super::*;

    const CONFIG: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;

    fn node(lease: &Lease, address: [u8; 4]) -> Node {
        let link: LinkName = "eth0".parse().unwrap();
        Node::new(Uplink { ipv4: Some(address.into()), ..Uplink::new(link, 1500) }, lease.subnet)
    }

    /// Calls `maintain` until no request is under way, while the store lists only `listed`.
    fn status(own: &mut OwnLease, listed: &Arc<[Lease]>, node: &Node) -> OwnLeaseStatus {
        loop {
            let status = own.maintain(listed, node, &[], Instant::now());
            if own.pending.is_none() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn list(root: &Path) -> Arc<[Lease]> {
        Dir::new(root).leases(&NetConf::parse(CONFIG.as_bytes()).unwrap()).unwrap()
    }

    /// Writes these leases into the directory.
    fn put(root: &Path, leases: &[Lease]) {
        for lease in leases {
            std::fs::write(root.join("subnets").join(lease.subnet.to_string()), lease.to_json()).unwrap();
        }
    }

    /// Runs `test` with the lease that a directory has accepted from the node 192.0.2.12, and with that directory.
    fn with_lease(test: impl FnOnce(OwnLease, Lease, &Path)) {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("config"), CONFIG).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tasks = runtime.handle().clone();
        // The store has a thread of its own, as in the daemon.
        let (stop, stopped) = oneshot::channel::<()>();
        let talks = std::thread::spawn(move || runtime.block_on(stopped));
        let (cause_sender, _trigger) = crate::trigger::channel();
        let source = StoreHandle { store: Store::Dir(Dir::new(place.path())), tasks, cause_sender };
        let conf = source.net_conf().unwrap();
        let requester = Requester { public_ip: Some([192, 0, 2, 12].into()), ..Requester::default() };
        let own = OwnLease::new(source, conf, requester);
        let lease = own.acquire(|_: Option<&Announced>| [Mac::default(); 2], 7, false).unwrap();
        let (own, lease) = own.with_lease(lease);
        test(own, lease, place.path());
        drop(stop);
        talks.join().unwrap().unwrap_err();
    }

    /// The store lists the other address before it has listed ours.
    #[test]
    fn a_lease_that_is_overwritten_at_once_is_taken_back() {
        with_lease(|mut own, lease, root| {
            let node = node(&lease, [192, 0, 2, 12]);
            let theirs: Arc<[Lease]> =
                [Lease { public_ip: Some([192, 0, 2, 77].into()), ..lease.clone() }].into();
            put(root, &theirs);
            let fault = status(&mut own, &theirs, &node).fault;
            assert!(matches!(fault, Some(StoreFault::OwnLeaseContested { .. })), "{fault:?}");
            assert!(list(root)[0].has_same_data(&lease));
        });
    }

    /// Somebody deletes our lease and writes leases that contain it or lie within it, some with an earlier time.
    #[test]
    fn no_lease_that_overlaps_ours_keeps_it_away() {
        with_lease(|mut own, lease, root| {
            let node = node(&lease, [192, 0, 2, 12]);
            own.maintain(&list(root), &node, &[], Instant::now());
            let subnet = lease.subnet.ipv4.unwrap();
            let subnets = [18, 23, 25].map(|len| ipnet::Ipv4Net::new(subnet.addr(), len).unwrap().trunc());
            let others = subnets.into_iter().enumerate().map(|(nth, ipv4)| Lease {
                born: [1, lease.born + 1, 1][nth],
                subnet: plan::subnet::Subnet { ipv4: Some(ipv4), ipv6: None },
                public_ip: Some([192, 0, 2, 77].into()),
                ..lease.clone()
            });
            let others: Arc<[Lease]> = others.collect();
            std::fs::remove_file(root.join("subnets").join(lease.subnet.to_string())).unwrap();
            put(root, &others);
            assert_eq!(status(&mut own, &others, &node).fault, None);
            assert!(list(root).iter().any(|there| there.has_same_data(&lease)));
        });
    }

    /// Earlier leases of ours count as ours until the store lists the latest one, then as another node's. host-gw has no
    /// MAC that would distinguish the nodes.
    #[test]
    fn our_former_leases_are_ours_until_the_store_lists_the_latest_one() {
        with_lease(|mut own, first, root| {
            let list = || list(root);
            let stale = list();
            // The address changes twice, while the store still lists the first one.
            for last in [52, 53] {
                let node = node(&first, [192, 0, 2, last]);
                own.set_addresses(&node.uplink);
                let status = status(&mut own, &stale, &node);
                assert_eq!(status.fault, None, "{last}");
                assert_eq!(list()[0].public_ip, Some([192, 0, 2, last].into()));
                assert_eq!(own.maintain(&stale, &node, &[], Instant::now()).fault, None, "{last}");
            }
            // Once the store has listed the last one, the first address belongs to another node.
            let node = node(&first, [192, 0, 2, 53]);
            assert_eq!(own.maintain(&list(), &node, &[], Instant::now()).fault, None);
            let fault = own.maintain(&stale, &node, &[], Instant::now()).fault;
            assert!(matches!(fault, Some(StoreFault::OwnLeaseContested { .. })), "{fault:?}");
            // A younger entry did not overwrite ours: the subnet was free and belongs to that node now.
            let younger = [Lease { born: stale[0].born + 1, ..stale[0].clone() }].into();
            let fault = own.maintain(&younger, &node, &[], Instant::now()).fault;
            assert!(matches!(fault, Some(StoreFault::OwnLeaseTaken { .. })), "{fault:?}");
        });
    }
}
