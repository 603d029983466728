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
use plan::note::StoreFault;
use plan::subnet_alloc::{self, Asker};
use plan::{Mac, PeerPath};
use store::{Announce, Choice, Claim, Store, StoreError};
use tokio::runtime::Handle;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tracing::warn;

use crate::trigger::{Bell, Cause};

/// Maximum time until the store reports our own write.
const ECHO: Duration = Duration::from_secs(5);
/// Minimum time between two re-acquisitions of our lease; an earlier request would only read. Peers keep a vanished lease
/// for 2 s, in which it may vanish several times.
const RETURN: Duration = Duration::from_millis(250);
/// Minimum times between two writes of our lease over another daemon's: after the first, second, third and each further
/// write. A daemon with our address would undo them for ever.
const RIVALRY: [Duration; 4] =
    [Duration::from_secs(5), Duration::from_secs(15), Duration::from_secs(60), Duration::from_secs(600)];
/// Time after which that count begins again.
const PEACE: Duration = Duration::from_secs(3600);
/// Minimum time between two writes of our lease that only add or remove the port because of peers' ports.
const PORT_PAUSE: Duration = Duration::from_secs(60);
/// Time for which the warning about an overwritten lease stays although the lease is ours again.
const CONTEST: Duration = Duration::from_secs(150);
/// Maximum time until a refused request for the lease is repeated. The first repetitions come sooner, since a store that
/// is unreachable for a moment refuses as well.
const RETRY: Duration = Duration::from_secs(5);

/// The store, for threads other than its own.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) store: Store,
    /// Runtime of the thread that talks to the store.
    pub(crate) tasks: Handle,
    /// Rung when an answer has arrived.
    pub(crate) bell: Bell,
}

impl Source {
    /// Reads the network config from the store. Blocks until it answers or fails.
    pub(crate) fn net_conf(&self) -> Result<NetConf, StoreError> {
        self.tasks.block_on(self.store.net_conf())
    }

    /// Reads the leases of the config's networks from the store. Blocks until it answers or fails.
    pub(crate) fn leases(&self, conf: &NetConf) -> Result<Arc<[Lease]>, StoreError> {
        self.tasks.block_on(self.store.leases(conf))
    }

    /// Requests our lease in the background.
    fn ask(&self, claim: Claim) -> oneshot::Receiver<Result<Lease, StoreError>> {
        let (sender, answer) = oneshot::channel();
        let Self { store, bell, .. } = self.clone();
        self.tasks.spawn(async move {
            let _ = sender.send(store.acquire(claim).await);
            bell.ring(Cause::Leases);
        });
        answer
    }
}

/// Our lease, with the data that a request for it needs.
pub(crate) struct OwnLease {
    source: Source,
    conf: NetConf,
    asker: Asker,
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
    asked: Option<Asked>,
    /// Reason why the lease cannot be acquired, and the time of the next attempt.
    refused: Option<(StoreFault, Instant)>,
    /// Number of refused attempts since the lease was last in order.
    attempts: u32,
}

/// Request that is under way.
struct Asked {
    answer: oneshot::Receiver<Result<Lease, StoreError>>,
    wrong: Wrong,
}

/// Defect of our lease in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// The lease was missing.
    Gone,
    /// The lease held values that we no longer announce.
    Former,
    /// The lease differed only in whether it names the default port.
    Port,
    /// The lease of this node had been written by another daemon.
    Rival,
}

impl Wrong {
    fn words(self) -> &'static str {
        match self {
            Self::Gone => "had disappeared from the store; wrote it again",
            _ => "differed from what this node announces; wrote it again",
        }
    }
}

/// State of our lease.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) fault: Option<StoreFault>,
    /// Time at which to check the lease again even without news.
    pub(crate) due: Option<Instant>,
}

impl Kept {
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
    pub(crate) fn new(source: Source, conf: NetConf, asker: Asker) -> Self {
        Self {
            source,
            conf,
            asker,
            written: None,
            former: Vec::new(),
            contest: None,
            retaken: None,
            ported: None,
            asked: None,
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
        self.source.store.net_conf_at_hand()
    }

    /// Returns the lease that we hold, as far as we know.
    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.asker.held.as_ref()
    }

    /// Sets the addresses of another uplink; the next `keep` announces them.
    pub(crate) fn move_to(&mut self, uplink: &Uplink) {
        let Asker { public_ip, public_ipv6, .. } = Asker::at(uplink);
        (self.asker.public_ip, self.asker.public_ipv6) = (public_ip, public_ipv6);
    }

    /// Records that `lease` is ours, also in the store's client.
    pub(crate) fn holding(mut self, lease: Lease) -> (Self, Lease) {
        self.asker.previous = Some(lease.subnet);
        self.accept(lease.clone());
        // From now on the lease that we hold is better evidence.
        self.asker.vteps.clear();
        self.source.store.hold(&lease, &self.conf);
        (self, lease)
    }

    /// Replaces the lease that we hold, and returns the one before. A subnet that stays ours keeps its age, also if its
    /// entry had to be made again.
    fn accept(&mut self, lease: Lease) -> Option<Lease> {
        let before = self.asker.held.take();
        let known = before.as_ref().filter(|before| before.subnet == lease.subnet).map(|before| before.born);
        let born = earlier(lease.born, known.unwrap_or_default());
        self.asker.held = Some(Lease { born, written: lease.written.max(lease.born), ..lease });
        before
    }

    /// Acquires a lease and blocks until the store answers. No peer is admitted yet, so all leases that fit the network
    /// count. `alone` is true if no other machine of the segment answers for our address.
    pub(crate) fn take(&self, macs: impl Macs, dice: u64, alone: bool) -> Result<Lease, StoreError> {
        let (conf, config) = (self.conf.clone(), self.conf.config());
        let announce = move |held: Option<&Lease>, others: &[&Lease]| {
            let fits = |lease: &&&Lease| subnet_alloc::fits(&conf, &lease.subnet);
            let others: Vec<&Lease> = others.iter().filter(fits).copied().collect();
            let macs = macs(held.map(|held| &held.announced));
            config.backend.announced(config.families(), macs, others.iter().map(|lease| &lease.announced))
        };
        let mut claim = self.claim(Box::new(announce), Choice::Any { dice }, [].into());
        claim.asker.alone = alone;
        self.source.tasks.block_on(self.source.store.acquire(claim))
    }

    fn claim(&self, announce: Box<Announce>, choice: Choice, listed: Arc<[Lease]>) -> Claim {
        let (conf, asker) = (self.conf.clone(), self.asker.clone());
        Claim { conf, asker, announce, choice, listed }
    }

    /// Adopts a config that `may_follow` has accepted; the next `keep` announces the change.
    pub(crate) fn follow(&mut self, conf: &NetConf) {
        self.conf = conf.clone();
        self.ported = None;
    }

    /// Returns true if `conf` differs from the config in force. The error names a key that cannot change while pods run.
    /// A node changes to or from `alloc`, which has no routes, only if it has no `peers` to lose.
    pub(crate) fn may_follow(&self, conf: &NetConf, peers: usize) -> Result<bool, StoreFault> {
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
    pub(crate) fn keep(
        &mut self,
        listed: &Arc<[Lease]>,
        node: &Node,
        admitted: &[PeerPath],
        now: Instant,
    ) -> Kept {
        self.take_answer(now);
        let macs = [node.vtep.unwrap_or_default(), node.vtep_v6.unwrap_or_default()];
        let is_peer = |subnet: IpNet| admitted.binary_search_by_key(&subnet, |peer| peer.subnet).is_ok();
        let peers = listed.iter().filter(|lease| lease.subnet.nets().any(is_peer) && !self.asker.owns(lease));
        let config = self.conf.config();
        let peers = peers.map(|lease| &lease.announced);
        let announced = config.backend.announced(config.families(), macs, peers);
        let wrong = match self.wrong(listed, node, &announced, now) {
            Ok(kept) => {
                (self.refused, self.attempts) = (None, 0);
                return kept;
            }
            Err(wrong) => wrong,
        };
        if let Some((fault, until)) = self.refused.clone()
            && (self.asked.is_some() || now < until)
        {
            return Kept { fault: Some(fault), due: Some(until.max(now + RETURN)) };
        }
        if self.asked.is_none() {
            match wrong {
                Wrong::Rival => {
                    let known = self.retaken.filter(|(at, _)| now - *at < PEACE);
                    self.retaken = Some((now, known.map_or(0, |(_, times)| times + 1)));
                }
                Wrong::Port => self.ported = Some(now),
                Wrong::Gone | Wrong::Former => {}
            }
            let announce = move |_: Option<&Lease>, _: &[&Lease]| announced.clone();
            let claim = self.claim(Box::new(announce), Choice::Only(node.subnet), listed.clone());
            self.asked = Some(Asked { answer: self.source.ask(claim), wrong });
        }
        self.kept(now)
    }

    /// Returns the defect of our lease if it can be corrected now by writing the lease; otherwise the lease's state.
    fn wrong(
        &mut self,
        listed: &[Lease],
        node: &Node,
        announced: &Announced,
        now: Instant,
    ) -> Result<Kept, Wrong> {
        // The store may report our write late, especially if the route to it changes with our address.
        let standing = listed.iter().find(|lease| lease.subnet == node.subnet);
        if let (Some(standing), Some(held)) = (standing, &mut self.asker.held)
            && held.says_the_same(standing)
        {
            self.former.clear();
            held.born = earlier(held.born, standing.born);
            held.written = standing.written.max(standing.born);
        }
        // A lease that only overlaps ours takes nothing from a running node. Peers decide which of both they believe.
        if let Some(holder) = standing.filter(|lease| !self.asker.owns(lease) && !self.is_former(lease)) {
            let address = holder.public_ip.map(IpAddr::V4).or(holder.public_ipv6.map(IpAddr::V6));
            let address = address.map_or("somebody".into(), |address| address.to_string());
            let subnet = node.subnet.to_string().into();
            let fault = StoreFault::OwnLeaseTaken { subnet, holder: address.into() };
            return Ok(Kept { fault: Some(fault), due: Some(now + RETRY) });
        }
        let written = self.written.as_ref().filter(|(what, _)| self.says(what, announced)).map(|(_, at)| *at);
        let echo = match standing {
            None => RETURN,
            Some(_) if self.former.is_empty() => Duration::ZERO,
            Some(_) => ECHO,
        };
        match standing {
            Some(lease) if self.says(lease, announced) => Ok(self.kept(now)),
            _ if written.is_some_and(|at| now - at < echo) => {
                Ok(Kept { due: written.map(|at| at + echo), ..self.kept(now) })
            }
            None => Err(Wrong::Gone),
            Some(lease) if self.says(lease, &announced.spelled_as(&lease.announced)) => match self.ported {
                Some(at) if now - at < PORT_PAUSE => {
                    Ok(Kept { due: Some(at + PORT_PAUSE), ..self.kept(now) })
                }
                _ => Err(Wrong::Port),
            },
            Some(lease) if self.is_former(lease) => Err(Wrong::Former),
            Some(lease) => self.contested(self.words(lease), node, now),
        }
    }

    /// Handles a lease that another daemon has overwritten with `theirs`. It is written again after ever longer pauses.
    fn contested(&mut self, theirs: String, node: &Node, now: Instant) -> Result<Kept, Wrong> {
        let subnet = node.subnet.to_string().into();
        let fault = StoreFault::OwnLeaseContested { subnet, theirs: theirs.into() };
        self.contest = Some((fault, now + CONTEST));
        let pause = |times: usize| RIVALRY[times.min(RIVALRY.len() - 1)];
        let until = self.retaken.map(|(at, times)| at + pause(times)).filter(|until| now < *until);
        match until {
            Some(until) => Ok(Kept { due: Some(until), ..self.kept(now) }),
            None => Err(Wrong::Rival),
        }
    }

    /// Takes the answer to the request, if it has arrived.
    fn take_answer(&mut self, now: Instant) {
        let Some(asked) = &mut self.asked else { return };
        match asked.answer.try_recv() {
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Closed) => {}
            Ok(Ok(lease)) => {
                warn!("our lease {} {}", lease.subnet, asked.wrong.words());
                self.written = Some((lease.clone(), now));
                let before = self.accept(lease);
                self.former.extend(before);
                (self.refused, self.attempts) = (None, 0);
            }
            Ok(Err(error)) => {
                let why = error.to_string().into();
                let fault = if asked.wrong == Wrong::Gone {
                    StoreFault::OwnLeaseGone { why }
                } else {
                    StoreFault::OwnLeaseStale { why }
                };
                // A refused write took nothing back, so the next attempt need not wait for a pause.
                if asked.wrong == Wrong::Rival {
                    self.retaken = None;
                }
                let pause = RETURN * 2_u32.pow(self.attempts.min(10));
                self.attempts += 1;
                self.refused = Some((fault, now + pause.min(RETRY)));
            }
        }
        self.asked = None;
    }

    /// Returns the state of a lease that is in order or just written. It has a warning if another daemon writes it, too.
    fn kept(&mut self, now: Instant) -> Kept {
        self.contest = self.contest.take().filter(|(_, until)| now < *until);
        let (fault, due) = self.contest.clone().unzip();
        Kept { fault, due }
    }

    /// Returns true if we wrote that lease ourselves, under this or an earlier config or uplink.
    fn is_former(&self, lease: &Lease) -> bool {
        self.asker.held.iter().chain(&self.former).any(|held| held.says_the_same(lease))
    }

    /// Describes what another writer has put into our lease: its address, else its VTEP MAC, else its backend.
    fn words(&self, lease: &Lease) -> String {
        let Asker { public_ip, public_ipv6, .. } = self.asker;
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
    fn says(&self, lease: &Lease, announced: &Announced) -> bool {
        let Asker { public_ip, public_ipv6, .. } = self.asker;
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

    /// Calls `keep` until no request is under way, while the store lists only `listed`.
    fn kept(own: &mut OwnLease, listed: &Arc<[Lease]>, node: &Node) -> Kept {
        loop {
            let kept = own.keep(listed, node, &[], Instant::now());
            if own.asked.is_none() {
                return kept;
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
    fn holding(test: impl FnOnce(OwnLease, Lease, &Path)) {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("config"), CONFIG).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tasks = runtime.handle().clone();
        // The store has a thread of its own, as in the daemon.
        let (stop, stopped) = oneshot::channel::<()>();
        let talks = std::thread::spawn(move || runtime.block_on(stopped));
        let (bell, _trigger) = crate::trigger::channel();
        let source = Source { store: Store::Dir(Dir::new(place.path())), tasks, bell };
        let conf = source.net_conf().unwrap();
        let asker = Asker { public_ip: Some([192, 0, 2, 12].into()), ..Asker::default() };
        let own = OwnLease::new(source, conf, asker);
        let lease = own.take(|_: Option<&Announced>| [Mac::default(); 2], 7, false).unwrap();
        let (own, lease) = own.holding(lease);
        test(own, lease, place.path());
        drop(stop);
        talks.join().unwrap().unwrap_err();
    }

    /// The store lists the other address before it has listed ours.
    #[test]
    fn a_lease_that_is_overwritten_at_once_is_taken_back() {
        holding(|mut own, lease, root| {
            let node = node(&lease, [192, 0, 2, 12]);
            let theirs: Arc<[Lease]> =
                [Lease { public_ip: Some([192, 0, 2, 77].into()), ..lease.clone() }].into();
            put(root, &theirs);
            let fault = kept(&mut own, &theirs, &node).fault;
            assert!(matches!(fault, Some(StoreFault::OwnLeaseContested { .. })), "{fault:?}");
            assert!(list(root)[0].says_the_same(&lease));
        });
    }

    /// Somebody deletes our lease and writes leases that contain it or lie within it, some with an earlier time.
    #[test]
    fn no_lease_that_overlaps_ours_keeps_it_away() {
        holding(|mut own, lease, root| {
            let node = node(&lease, [192, 0, 2, 12]);
            own.keep(&list(root), &node, &[], Instant::now());
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
            assert_eq!(kept(&mut own, &others, &node).fault, None);
            assert!(list(root).iter().any(|there| there.says_the_same(&lease)));
        });
    }

    /// Earlier leases of ours count as ours until the store lists the latest one, then as another node's. host-gw has no
    /// MAC that would distinguish the nodes.
    #[test]
    fn our_former_leases_are_ours_until_the_store_lists_the_latest_one() {
        holding(|mut own, first, root| {
            let list = || list(root);
            let stale = list();
            // The address changes twice, while the store still lists the first one.
            for last in [52, 53] {
                let node = node(&first, [192, 0, 2, last]);
                own.move_to(&node.uplink);
                let kept = kept(&mut own, &stale, &node);
                assert_eq!(kept.fault, None, "{last}");
                assert_eq!(list()[0].public_ip, Some([192, 0, 2, last].into()));
                assert_eq!(own.keep(&stale, &node, &[], Instant::now()).fault, None, "{last}");
            }
            // Once the store has listed the last one, the first address belongs to another node.
            let node = node(&first, [192, 0, 2, 53]);
            assert_eq!(own.keep(&list(), &node, &[], Instant::now()).fault, None);
            let fault = own.keep(&stale, &node, &[], Instant::now()).fault;
            assert!(matches!(fault, Some(StoreFault::OwnLeaseContested { .. })), "{fault:?}");
            // A younger entry did not overwrite ours: the subnet was free and belongs to that node now.
            let younger = [Lease { born: stale[0].born + 1, ..stale[0].clone() }].into();
            let fault = own.keep(&younger, &node, &[], Instant::now()).fault;
            assert!(matches!(fault, Some(StoreFault::OwnLeaseTaken { .. })), "{fault:?}");
        });
    }
}
