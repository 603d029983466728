//! Our lease: taken at start, kept while we run, with the network config that it was taken under. It does not decide
//! which subnet: that is the plan's and the store's part.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use plan::backend::Backend;
use plan::backend::vxlan::DEFAULT_PORT;
use plan::input::{Family, Node, Uplink};
use plan::lease::{Announced, Lease, Vtep};
use plan::netconf::NetConf;
use plan::note::StoreFault;
use plan::subnet_alloc::{self, Asker};
use plan::{Mac, PeerPath};
use store::{Announce, Choice, Claim, Store, StoreError};
use tokio::runtime::Handle;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tracing::warn;

use crate::trigger::{Bell, Cause};

/// The store has told of our own write by then.
const ECHO: Duration = Duration::from_secs(5);
/// And that it took our lease again; asked once more before, it only reads. Others keep a lost lease for 2 s, in which it
/// may be lost several times.
const RETURN: Duration = Duration::from_millis(250);
/// Minimum times before our lease is written over somebody else's words again, after the first, second, third and each
/// further time: another daemon with our address would undo it for ever.
const RIVALRY: [Duration; 4] =
    [Duration::from_secs(5), Duration::from_secs(15), Duration::from_secs(60), Duration::from_secs(600)];
/// Time after which that count begins again.
const PEACE: Duration = Duration::from_secs(3600);
/// Minimum time between two writes of our lease that only add or remove the port because of peers' ports.
const PORT_PAUSE: Duration = Duration::from_secs(60);
/// So long it is said that somebody else has written our lease, though it is ours again.
const CONTEST: Duration = Duration::from_secs(150);
/// Longest time until the lease is asked for again after the store refused it. The first attempts come sooner, since a store
/// that is only out of reach for a moment refuses as well.
const RETRY: Duration = Duration::from_secs(5);

/// The store, asked from a thread that is not its own.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) store: Store,
    /// Of the thread that talks to it.
    pub(crate) tasks: Handle,
    /// Rung when an answer is there.
    pub(crate) bell: Bell,
}

impl Source {
    /// The config that the store has now. Waits for the answer.
    pub(crate) fn net_conf(&self) -> Result<NetConf, StoreError> {
        self.tasks.block_on(self.store.net_conf())
    }

    /// The leases that the store has now. Waits for the answer.
    pub(crate) fn leases(&self) -> Result<Vec<Lease>, StoreError> {
        self.tasks.block_on(self.store.leases())
    }

    /// Has our lease taken, while others go on.
    fn ask(&self, claim: Claim) -> oneshot::Receiver<Result<Lease, StoreError>> {
        let (told, answer) = oneshot::channel();
        let Self { store, bell, .. } = self.clone();
        self.tasks.spawn(async move {
            let _ = told.send(store.acquire(claim).await);
            bell.ring(Cause::Leases);
        });
        answer
    }
}

/// Our lease: what it takes to ask for it, and to ask again.
pub(crate) struct OwnLease {
    source: Source,
    conf: NetConf,
    asker: Asker,
    /// What the store was last told to say, and when.
    written: Option<(Lease, Instant)>,
    /// What we held before, as long as the store has not told of what we hold now.
    former: Vec<Lease>,
    /// What somebody else made it say, and how long that is told.
    contest: Option<(StoreFault, Instant)>,
    /// When it was written over somebody else's words last, and how often of late.
    retaken: Option<(Instant, usize)>,
    /// When it was written last because peers announce another port, or none does any more.
    ported: Option<Instant>,
    /// Age of the entry of ours that stood last: whoever overwrites an entry does not change its age, and whoever takes a
    /// free subnet makes a younger one.
    stood: Option<u64>,
    asked: Option<Asked>,
    /// Why it cannot be taken, and when it is tried again.
    refused: Option<(StoreFault, Instant)>,
    /// Attempts that were refused since the lease stood last.
    attempts: u32,
}

/// A question that is under way.
struct Asked {
    answer: oneshot::Receiver<Result<Lease, StoreError>>,
    wrong: Wrong,
}

/// What was wrong with our lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// It was not there at all.
    Gone,
    /// It said what we no longer announce.
    Former,
    /// It differed only in whether it names the default port.
    Port,
    /// Somebody else had written our node's lease.
    Rival,
    /// Somebody else had written another address into our lease.
    Hijacked,
}

impl Wrong {
    fn words(self) -> &'static str {
        match self {
            Self::Gone => "was gone and is taken again",
            _ => "did not say what we announce and is written again",
        }
    }
}

/// How our lease stands.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) fault: Option<StoreFault>,
    /// When to look at it again though nothing is heard.
    pub(crate) due: Option<Instant>,
}

impl Kept {
    /// Of a lease that nobody can renew.
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
            stood: None,
            asked: None,
            refused: None,
            attempts: 0,
        }
    }

    /// The config in force.
    pub(crate) fn conf(&self) -> &NetConf {
        &self.conf
    }

    /// The config that the store has now, whatever it told last, if that is known without waiting.
    pub(crate) fn conf_in_store(&self) -> Option<Result<NetConf, StoreError>> {
        self.source.store.net_conf_at_hand()
    }

    /// What we hold, as far as we know.
    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.asker.held.as_ref()
    }

    /// Announces another uplink, with the next `keep`.
    pub(crate) fn move_to(&mut self, uplink: &Uplink) {
        let Asker { public_ip, public_ipv6, .. } = Asker::at(uplink);
        (self.asker.public_ip, self.asker.public_ipv6) = (public_ip, public_ipv6);
    }

    /// From now on that lease is ours.
    pub(crate) fn holding(mut self, lease: Lease) -> (Self, Lease) {
        self.asker.previous = Some(lease.subnet);
        self.asker.held = Some(lease.clone());
        self.source.store.hold(&lease.subnet, &self.conf);
        (self, lease)
    }

    /// Takes it, and waits until that is done. Nobody is admitted as a peer yet, so leases that fit the network have to do.
    pub(crate) fn take(&self, macs: impl Macs, dice: u64) -> Result<Lease, StoreError> {
        let (conf, config) = (self.conf.clone(), self.conf.config());
        let announce = move |held: Option<&Lease>, others: &[&Lease]| {
            let fits = |lease: &&&Lease| subnet_alloc::fits(&conf, &lease.subnet);
            let others: Vec<&Lease> = others.iter().filter(fits).copied().collect();
            config.backend.announced(&config, macs(held), &others)
        };
        let claim = self.claim(Box::new(announce), Choice::Any { dice }, Vec::new());
        self.source.tasks.block_on(self.source.store.acquire(claim))
    }

    fn claim(&self, announce: Box<Announce>, choice: Choice, listed: Vec<Lease>) -> Claim {
        let (conf, asker) = (self.conf.clone(), self.asker.clone());
        Claim { conf, asker, announce, choice, listed }
    }

    /// Follows a config that `may_follow`; what is announced changes with the next `keep`.
    pub(crate) fn follow(&mut self, conf: &NetConf) {
        self.conf = conf.clone();
        self.ported = None;
    }

    /// True if it is another config than the one in force. The error says what of it cannot change while pods run; to or from
    /// `alloc`, which has no routes, a node changes only where no `peers` would lose it.
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
        let is_alloc = |conf: &NetConf| matches!(conf.backend, Backend::Alloc);
        if peers > 0 && is_alloc(&self.conf) != is_alloc(conf) {
            return Err(StoreFault::ConfigRefused { what: "Backend Type from or to alloc".into() });
        }
        Ok(self.conf != *conf)
    }

    /// Has our lease taken again if it is not among those listed, and written anew if it does not say what we announce: the
    /// same subnet, since pods have addresses from it. Gives what is wrong if that cannot be. `admitted` are the peers by
    /// subnet: what other leases say does not count.
    pub(crate) fn keep(
        &mut self,
        listed: &[Lease],
        node: &Node,
        admitted: &[PeerPath],
        now: Instant,
    ) -> Kept {
        self.hear(now);
        let macs = [node.vtep.unwrap_or_default(), node.vtep_v6.unwrap_or_default()];
        let is_peer = |subnet: IpNet| admitted.binary_search_by_key(&subnet, |peer| peer.subnet).is_ok();
        let peers = listed.iter().filter(|lease| {
            let subnets = Family::ALL.into_iter().filter_map(|family| lease.subnet.of(family));
            subnets.into_iter().any(is_peer) && !self.asker.owns(lease)
        });
        let config = self.conf.config();
        let announced = config.backend.announced(&config, macs, &peers.collect::<Vec<_>>());
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
                Wrong::Rival | Wrong::Hijacked => {
                    let known = self.retaken.filter(|(at, _)| now - *at < PEACE);
                    self.retaken = Some((now, known.map_or(0, |(_, times)| times + 1)));
                }
                Wrong::Port => self.ported = Some(now),
                Wrong::Gone | Wrong::Former => {}
            }
            let choice = match wrong {
                Wrong::Hijacked => Choice::Back(node.subnet),
                _ => Choice::Only(node.subnet),
            };
            let announce = move |_: Option<&Lease>, _: &[&Lease]| announced.clone();
            let claim = self.claim(Box::new(announce), choice, listed.to_vec());
            self.asked = Some(Asked { answer: self.source.ask(claim), wrong });
        }
        self.kept(now)
    }

    /// What is wrong with our lease and can be put right by writing it; otherwise how it stands.
    fn wrong(
        &mut self,
        listed: &[Lease],
        node: &Node,
        announced: &Announced,
        now: Instant,
    ) -> Result<Kept, Wrong> {
        // The store may tell late of what we have written, the more so where the way to it changes with our address.
        let standing = listed.iter().find(|lease| lease.subnet == node.subnet);
        if standing.zip(self.asker.held.as_ref()).is_some_and(|(standing, held)| held.says_the_same(standing))
        {
            self.former.clear();
        }
        let mut others = listed.iter().filter(|lease| !self.asker.owns(lease) && !self.is_former(lease));
        if let Some(holder) = others.find(|other| holds(&self.conf, other, standing, node)) {
            let address = holder.public_ip.map(IpAddr::V4).or(holder.public_ipv6.map(IpAddr::V6));
            let address = address.map_or("somebody".into(), |address| address.to_string());
            if holder.subnet == node.subnet && self.stood == Some(holder.born) {
                return self.contested(format!("address {address}"), node, Wrong::Hijacked, now);
            }
            let subnet = node.subnet.to_string().into();
            let fault = StoreFault::OwnLeaseTaken { subnet, holder: address.into() };
            return Ok(Kept { fault: Some(fault), due: Some(now + RETRY) });
        }
        self.stood = standing.map(|lease| lease.born).or(self.stood);
        let written = self.written.as_ref().filter(|(what, _)| self.says(what, announced)).map(|(_, at)| *at);
        let echo = if standing.is_none() { RETURN } else { ECHO };
        match standing {
            Some(lease) if self.says(lease, announced) => Ok(self.kept(now)),
            _ if written.is_some_and(|at| now - at < echo) => {
                Ok(Kept { due: written.map(|at| at + echo), ..self.kept(now) })
            }
            None => Err(Wrong::Gone),
            Some(lease) if self.says(lease, &with_port_of(announced, lease)) => match self.ported {
                Some(at) if now - at < PORT_PAUSE => {
                    Ok(Kept { due: Some(at + PORT_PAUSE), ..self.kept(now) })
                }
                _ => Err(Wrong::Port),
            },
            Some(lease) if self.is_former(lease) => Err(Wrong::Former),
            Some(lease) => self.contested(words(lease), node, Wrong::Rival, now),
        }
    }

    /// Somebody else has written our lease, last with those words. It is written again, ever more seldom.
    fn contested(&mut self, theirs: String, node: &Node, wrong: Wrong, now: Instant) -> Result<Kept, Wrong> {
        let subnet = node.subnet.to_string().into();
        let fault = StoreFault::OwnLeaseContested { subnet, theirs: theirs.into() };
        self.contest = Some((fault, now + CONTEST));
        let pause = |times: usize| RIVALRY[times.min(RIVALRY.len() - 1)];
        let until = self.retaken.map(|(at, times)| at + pause(times)).filter(|until| now < *until);
        match until {
            Some(until) => Ok(Kept { due: Some(until), ..self.kept(now) }),
            None => Err(wrong),
        }
    }

    /// Takes the answer, if it is there.
    fn hear(&mut self, now: Instant) {
        let Some(asked) = &mut self.asked else { return };
        match asked.answer.try_recv() {
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Closed) => {}
            Ok(Ok(lease)) => {
                warn!("our lease {} {}", lease.subnet, asked.wrong.words());
                self.written = Some((lease.clone(), now));
                self.former.extend(self.asker.held.replace(lease));
                (self.refused, self.attempts) = (None, 0);
            }
            Ok(Err(error)) => {
                let why = error.to_string().into();
                let fault = if asked.wrong == Wrong::Gone {
                    StoreFault::OwnLeaseGone { why }
                } else {
                    StoreFault::OwnLeaseStale { why }
                };
                // What was refused took nothing back, so nobody has to wait for the next attempt.
                if matches!(asked.wrong, Wrong::Rival | Wrong::Hijacked) {
                    self.retaken = None;
                }
                let pause = RETURN * 2_u32.pow(self.attempts.min(10));
                self.attempts += 1;
                self.refused = Some((fault, now + pause.min(RETRY)));
            }
        }
        self.asked = None;
    }

    /// It stands, or has been written; perhaps somebody else writes it too.
    fn kept(&mut self, now: Instant) -> Kept {
        self.contest = self.contest.take().filter(|(_, until)| now < *until);
        let (fault, due) = self.contest.clone().unzip();
        Kept { fault, due }
    }

    /// Are these words our own, of an earlier config or uplink?
    fn is_former(&self, lease: &Lease) -> bool {
        self.asker.held.iter().chain(&self.former).any(|held| held.says_the_same(lease))
    }

    /// Does the lease say all that we announce?
    fn says(&self, lease: &Lease, announced: &Announced) -> bool {
        let Asker { public_ip, public_ipv6, .. } = self.asker;
        (lease.public_ip, lease.public_ipv6, &lease.announced) == (public_ip, public_ipv6, announced)
    }
}

/// Has that other node our subnet, or part of it? Of two leases that overlap the older one stays.
fn holds(conf: &NetConf, other: &Lease, standing: Option<&Lease>, node: &Node) -> bool {
    other.subnet == node.subnet
        || (subnet_alloc::overlap(&subnet_alloc::credible(conf, &other.subnet), &node.subnet)
            && standing.is_none_or(|own| other.born < own.born))
}

/// The same with the port named, or not, as that lease has it, where it is the default one: it says the same then.
fn with_port_of(announced: &Announced, lease: &Lease) -> Announced {
    let default = |port: Option<u16>| port.unwrap_or(DEFAULT_PORT) == DEFAULT_PORT;
    let ports: Vec<Option<u16>> = lease.announced.vteps().map(|vtep| vtep.port).collect();
    match (announced, ports.first()) {
        (Announced::Vxlan { ipv4, ipv6 }, Some(&port)) if default(port) => {
            let named = |vtep: Option<Vtep>| {
                vtep.map(|vtep| if default(vtep.port) { Vtep { port, ..vtep } } else { vtep })
            };
            Announced::Vxlan { ipv4: named(*ipv4), ipv6: named(*ipv6) }
        }
        _ => announced.clone(),
    }
}

/// What tells a lease of somebody else.
fn words(lease: &Lease) -> String {
    match lease.announced.macs().into_iter().flatten().next() {
        Some(mac) => format!("VTEP MAC {mac}"),
        None => format!("backend {:?}", lease.announced.backend_type()),
    }
}

/// Gives the MACs to announce, given the lease that we hold.
pub(crate) trait Macs: Fn(Option<&Lease>) -> [Mac; 2] + Send + Sync + 'static {}
impl<F: Fn(Option<&Lease>) -> [Mac; 2] + Send + Sync + 'static> Macs for F {}

#[cfg(test)]
mod tests {
    use plan::LinkName;
    use plan::input::Former;
    use store::Dir;

    use super::*;

    const CONFIG: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;

    fn node(lease: &Lease, address: [u8; 4]) -> Node {
        let link: LinkName = "eth0".parse().unwrap();
        Node {
            uplink: Uplink { ipv4: Some(address.into()), ..Uplink::new(link, 1500) },
            subnet: lease.subnet,
            vtep: None,
            vtep_v6: None,
            former: Former::default(),
            foreign_vnis: Vec::new(),
            firewall_keeper: plan::input::FirewallKeeper::default(),
            by_nexthop: false,
        }
    }

    /// Keeps the lease until nothing is under way any more, while the store tells only of `listed`.
    fn kept(own: &mut OwnLease, listed: &[Lease], node: &Node) -> Kept {
        loop {
            let kept = own.keep(listed, node, &[], Instant::now());
            if own.asked.is_none() {
                return kept;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// host-gw has no MAC by which a node could be told from another one that took its lease over.
    #[test]
    fn what_we_wrote_before_is_nobody_elses_until_the_store_tells_of_what_we_wrote_since() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("config"), CONFIG).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tasks = runtime.handle().clone();
        // As in the daemon, the thread that talks to the store is another one.
        let (stop, stopped) = oneshot::channel::<()>();
        let talks = std::thread::spawn(move || runtime.block_on(stopped));
        let (bell, _trigger) = crate::trigger::channel();
        let dir = Dir::new(place.path());
        let source = Source { store: Store::Dir(dir.clone()), tasks, bell };
        let conf = source.net_conf().unwrap();
        let asker = Asker { public_ip: Some([192, 0, 2, 12].into()), ..Asker::default() };
        let own = OwnLease::new(source, conf, asker);
        let lease = own.take(|_: Option<&Lease>| [Mac::default(); 2], 7).unwrap();
        let (mut own, first) = own.holding(lease);
        let list = || dir.leases().unwrap();
        let stale = list();
        // The address changes twice, and the store goes on telling of the first one.
        for last in [52, 53] {
            let node = node(&first, [192, 0, 2, last]);
            own.move_to(&node.uplink);
            let kept = kept(&mut own, &stale, &node);
            assert_eq!(kept.fault, None, "{last}");
            assert_eq!(list()[0].public_ip, Some([192, 0, 2, last].into()));
            assert_eq!(own.keep(&stale, &node, &[], Instant::now()).fault, None, "{last}");
        }
        // Once it has told, whoever has the first address now is another node.
        let node = node(&first, [192, 0, 2, 53]);
        assert_eq!(own.keep(&list(), &node, &[], Instant::now()).fault, None);
        let fault = own.keep(&stale, &node, &[], Instant::now()).fault;
        assert!(matches!(fault, Some(StoreFault::OwnLeaseContested { .. })), "{fault:?}");
        // A younger entry was not written over ours: the subnet was free, and is that node's now.
        let younger = [Lease { born: stale[0].born + 1, ..stale[0].clone() }];
        let fault = own.keep(&younger, &node, &[], Instant::now()).fault;
        assert!(matches!(fault, Some(StoreFault::OwnLeaseTaken { .. })), "{fault:?}");
        drop(stop);
        talks.join().unwrap().unwrap_err();
    }
}
