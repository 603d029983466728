//! The loop: wait for a cause, read the kernel, plan, apply the difference, tell what was done. One thread owns all of
//! it; nothing here knows what a backend is.

mod fault;
mod on_disk;
mod publish;
mod show;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use kernel::{Filter, Kernel, Outcome, Seen};
use plan::backend::vxlan::Direct;
use plan::belief::{Belief, History, Weighed};
use plan::firewall;
use plan::follow::{Followed, Follower};
use plan::input::{Config, FirewallKeeper, Former, Leases, Node, Underlay};
use plan::netconf::NetConf;
use plan::note::{NodeFault, Note, StoreFault};
use plan::owned::Sweep;
use plan::rivals::{Evidence, Rivals};
use plan::text::printed;
use plan::uplink::Choice;
use plan::{Op, PeerPath, Wanted};
use store::View;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::backoff::{Admitted, Backoff};
use crate::cache::Cache;
use crate::flags::Flags;
use crate::footprint::Footprint;
use crate::identity::choose_uplink;
use crate::locks::Locks;
use crate::logging::tell_left_out;
use crate::metrics::Metrics;
use crate::notebook::{Line, Notebook, Trouble};
use crate::own_lease::{Kept, OwnLease};
use crate::probe::{Pace, Probes};
use crate::questions::Answers;
use crate::report::Board;
use crate::round::Round;
use crate::trigger::{Cause, Causes, Trigger};
use fault::{is_in_force, own_fault, refused_sysctl, rules_fault};

/// Until the kernel is read again after it could not be.
const BLIND_RETRY: Duration = Duration::from_secs(1);
/// Until a lost uplink is looked for again: the monitor does not hear of interfaces that are none of ours.
const UPLINK_RETRY: Duration = Duration::from_secs(1);
/// Until the subnet file is written again after it could not be.
const FILE_RETRY: Duration = Duration::from_secs(2);
/// Until a refused op is tried again when nothing else happens before.
const FAILED_RETRY: Duration = Duration::from_millis(250);

/// All that the rounds own.
pub(crate) struct Reconciler {
    pub(crate) kernel: Kernel,
    pub(crate) filter: Filter,
    pub(crate) config: Config,
    pub(crate) node: Node,
    pub(crate) own_lease: OwnLease,
    pub(crate) locks: Locks,
    pub(crate) view: watch::Receiver<View>,
    pub(crate) cache: Cache,
    pub(crate) flags: Flags,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) board: Board,
    pub(crate) answers: Answers,
    pub(crate) probes: Probes,
    pub(crate) memory: Memory,
}

/// What one round leaves for the next; none of it is needed for a right result.
#[derive(Default)]
pub(crate) struct Memory {
    backoff: Backoff,
    belief: Belief,
    rivals: Rivals,
    /// Sysctls that cannot be written: said once, not tried again.
    refused: BTreeSet<NodeFault>,
    notebook: Notebook,
    /// What the monitor is set to hear.
    interest: Option<kernel::Interest>,
    /// What is wrong with our own part, and since when.
    fault: Option<(String, Instant)>,
    footprint: Option<Footprint>,
    /// Subnets of peers that a policy rule or route of this node keeps packets from.
    diverted: Vec<IpNet>,
    /// Who enforces the traffic rules.
    firewall: Option<firewall::Choice>,
    /// Where the uplink is, and where it was.
    follower: Follower,
    /// When the first round was; the follower's time counts from there.
    begun: Option<Instant>,
}

impl Memory {
    /// What an earlier run remembered is what the store's first list is weighed by, however soon that comes.
    pub(crate) fn expecting(remembered: &Leases, history: Option<History>, node: &Node) -> Self {
        let others = remembered.known().iter().filter(|lease| lease.subnet != node.subnet);
        Self { belief: Belief::expecting(others.cloned(), history), ..Self::default() }
    }

    /// The node had these addresses before it started, and may get them back.
    pub(crate) fn of_home(self, home: Vec<IpAddr>) -> Self {
        Self { follower: Follower::of_home(home), ..self }
    }
}

impl Reconciler {
    /// Runs for the life of the process.
    pub(crate) fn run(mut self, mut trigger: Trigger) -> ! {
        // The first look sees to all that was asked for before it.
        trigger.forget();
        self.show_healths();
        let mut causes = Causes::from([Cause::Start]);
        loop {
            let retry = self.round(causes);
            causes = trigger.wait(retry);
        }
    }

    /// One look. Returns when to look again even without a cause.
    fn round(&mut self, causes: Causes) -> Option<Instant> {
        let begun = Instant::now();
        let news = self.view.has_changed().unwrap_or(false) || causes.contains(&Cause::Start);
        let view = self.view.borrow_and_update().clone();
        let asked = causes.contains(&Cause::Hangup);
        let Heard { leases, notes, mut due } = self.hear(&view, asked, begun);
        if causes.iter().any(Cause::is_about_rules) {
            self.kernel.forget_firewall();
        }
        let mut seen = match self.look(&leases) {
            Ok(seen) => seen,
            Err(error) => return Some(self.blind(&error)),
        };
        match self.follow_uplink(&seen.underlay, &leases) {
            // What was read was read for the old one.
            Uplinks::Another => return Some(begun),
            Uplinks::Same => {}
            Uplinks::Lost => due = due.into_iter().chain([begun + UPLINK_RETRY]).min(),
        }
        let wanted = self.plan(&leases, &mut seen, notes, begun);
        if let Some(first) = plan::check::check(&wanted.state, &wanted.owned).first() {
            error!("the plan contradicts itself and is not applied, please report this: {first}");
            self.set_fault(Some(format!("the plan contradicts itself: {first}")));
            return None;
        }
        let ops = plan::diff(&wanted.state, &seen.state, &wanted.owned);
        self.answers.give(&ops);
        let uplink = seen.underlay.link(self.node.uplink.link);
        let suspect = !uplink.is_some_and(|link| link.up && link.carrier);
        let uplink = uplink.map(|link| link.mac);
        drop(seen);
        let (mut round, retry) = self.apply(ops, wanted, (causes, begun));
        // What we announce is announced once it is there.
        let Kept { fault, due: again } = self.keep_lease(&view, &round.peers);
        round.notes.extend(fault.map(Note::Store));
        due = due.into_iter().chain(again).min();
        let remember = uplink.and_then(|mac| self.remember((&view, &leases), mac, news));
        round.notes.extend(self.cache.note());
        // However many peers and entries there are, they do not hide what is this node's.
        round.notes.sort_by_key(|note| match note {
            Note::Peer { .. } => 1,
            Note::Entry { .. } | Note::Stale { .. } => 2,
            _ => 0,
        });
        self.tell(&round);
        self.tell_probes(&mut round, uplink, suspect);
        let programmed = leases != Leases::Unknown;
        let fault = own_fault(&round, &self.config.backend.devices(&self.config)).or_else(|| {
            let unwritten = programmed.then(|| self.write_subnet_file().err()).flatten()?;
            due = due.into_iter().chain([begun + FILE_RETRY]).min();
            Some(unwritten)
        });
        let fault = fault.or_else(|| rules_fault(&round));
        self.set_fault(fault);
        self.metrics.count(&round);
        self.metrics.show_store_lost(view.lost.is_some());
        self.publish(&round, view.lost, programmed);
        due.into_iter().chain(retry).chain(remember).chain(self.memory.rivals.due()).min()
    }

    /// Goes where the uplink has gone.
    fn follow_uplink(&mut self, underlay: &Underlay, leases: &Leases) -> Uplinks {
        let now = self.memory.begun.get_or_insert_with(Instant::now).elapsed();
        let (flags, config, kernel) = (&self.flags, &self.config, &mut self.kernel);
        let choose =
            |remembered: &[IpAddr]| choose_uplink(flags, config, underlay, kernel, remembered.to_vec()).ok();
        let followed = self.memory.follower.follow(&self.node.uplink, underlay, now, choose);
        let mut uplink = match &followed {
            Followed::Lost => return Uplinks::Lost,
            Followed::Here => self.node.uplink.clone(),
            Followed::Moved(choice) => choice.uplink.clone(),
        };
        uplink.mtu = plan::uplink::mtu(config, leases, underlay, uplink.link);
        if uplink == self.node.uplink {
            return Uplinks::Same;
        }
        let mut reason = None;
        if let Followed::Moved(Choice { reason: why, .. }) = followed {
            let addresses = [uplink.ipv4.map(IpAddr::V4), uplink.ipv6.map(IpAddr::V6)];
            let addresses: Vec<_> = addresses.iter().flatten().map(IpAddr::to_string).collect();
            info!("uplink is {} {} now: {why}", uplink.link, addresses.join(", "));
            self.own_lease.move_to(&uplink);
            reason = Some(why);
        } else {
            info!("uplink {} has an MTU of {} now", uplink.link, uplink.mtu);
        }
        self.node.uplink = uplink;
        self.show(reason);
        Uplinks::Another
    }

    /// What the kernel should hold, with all that there is to say about it.
    fn plan(&mut self, leases: &Leases, seen: &mut Seen, mut notes: Vec<Note>, now: Instant) -> Wanted {
        let healths = self.probes.healths.borrow_and_update().clone();
        // What says nothing changes nothing.
        let telling = healths.iter().map(|health| &health.verdict);
        let telling = telling.filter(|verdict| verdict.way.is_some() || verdict.finding.is_fault());
        seen.underlay.verdicts = telling.cloned().collect();
        let (uplink, probed) = (self.node.uplink.link, self.flags.probe != Pace::Off);
        let evidence = Evidence { healths: &healths, seen: &seen.state, uplink, probed };
        seen.underlay.contenders = self.memory.rivals.weigh(&self.config, leases, evidence, now);
        seen.underlay.standing = plan::standing(&seen.state, self.config.table, self.node.uplink.link);
        self.node.former.links = seen.state.links.iter().map(|link| link.name).collect();
        self.node.by_nexthop = plan::has_nexthops(&seen.state);
        let mut wanted = plan::wanted(&self.config, &self.node, leases, &seen.underlay);
        // What is made now is there at the next look, whatever the config says by then.
        let made = wanted.state.links.iter().map(|link| link.name);
        self.node
            .former
            .links
            .extend(made.filter(|name| !seen.state.links.iter().any(|link| link.name == *name)));
        self.memory.refused.retain(|fault| is_in_force(fault, &wanted.state, &seen.state));
        notes.extend(self.memory.refused.iter().cloned().map(Note::Node));
        notes.extend(plan::unclaimed(&wanted.state, &seen.state, &wanted.owned, &seen.underlay));
        notes.extend(plan::environment(&self.config, &seen.underlay, &wanted.state, &wanted.peers));
        let plan::Diversions { notes: diverted, subnets } =
            plan::diversions(&self.config, &wanted, &seen.state, &seen.underlay);
        notes.extend(diverted);
        self.memory.diverted = subnets;
        let verified = self.config.backend.direct() == Direct::Verified;
        notes.extend(
            (verified && self.flags.probe == Pace::Off).then_some(Note::Node(NodeFault::NothingVerified)),
        );
        let refused = self.probes.refused.borrow_and_update().clone().filter(|_| verified);
        notes.extend(refused.map(|why| Note::Node(NodeFault::NoProbeSocket { why })));
        notes.extend(self.leave_footprint(&wanted.owned));
        wanted.notes.append(&mut notes);
        wanted
    }

    /// A store that is lost says nothing new, so our lease is not missed in it; but its time may end meanwhile.
    fn keep_lease(&mut self, view: &View, peers: &[PeerPath]) -> Kept {
        match &view.leases {
            Leases::Listed(listed) if view.lost.is_none() => {
                self.own_lease.keep(listed, &self.node, peers, Instant::now())
            }
            _ => Kept::until(view.own_until, SystemTime::now()),
        }
    }

    /// What to go by of what the store says. `asked` to look again, it does so even where changes are not followed.
    fn hear(&mut self, view: &View, asked: bool, now: Instant) -> Heard {
        // Whoever wants no rules takes nobody else's, but sweeps what was ours.
        self.node.former.firewall |= self.config.wants_rules();
        self.node.firewall_keeper = match self.node.former.firewall.then(|| self.locks.keep_firewall()) {
            Some(keeper) => keeper,
            None => FirewallKeeper::Nobody,
        };
        let mut heard = Heard { leases: Leases::Unknown, notes: view.notes.clone(), due: None };
        let follow = self.flags.config_reload || asked;
        let conf = if asked && !self.flags.config_reload {
            self.own_lease
                .conf_in_store()
                .map(|conf| conf.map_err(|error| error.to_string()))
                .or(view.conf.clone())
        } else {
            view.conf.clone()
        };
        let listed = view.leases.known().iter().filter(|lease| lease.subnet != self.node.subnet).count();
        let peers = listed.max(self.memory.belief.peers());
        if let Some(Err(fault)) = conf.map(|conf| self.reconfigure(conf, follow, peers)) {
            heard.notes.push(Note::Store(fault));
        }
        if view.leases == Leases::Unknown {
            return heard;
        }
        let ours = self.node.subnet;
        let others = view.leases.known().iter().filter(|lease| lease.subnet != ours).cloned().collect();
        let Weighed { leases, missing, due } =
            self.memory.belief.weigh(others, view.history, now, self.flags.shrink_grace);
        if missing > 0 {
            heard.notes.push(Note::Store(StoreFault::PeersMissing));
        }
        heard.due = due;
        heard.leases = match view.leases {
            Leases::Listed(_) => Leases::Listed(leases),
            Leases::Remembered(_) if view.lost.is_some() => Leases::Remembered(leases),
            // The store may yet be heard.
            _ => return heard,
        };
        self.node.foreign_vnis.clear();
        let vnis = plan::vnis(&self.config, &self.node, &heard.leases);
        self.node.foreign_vnis = self.locks.keep_vnis(&vnis);
        heard
    }

    /// Follows the network config as far as it may change under running pods; otherwise the last good one stays.
    fn reconfigure(
        &mut self,
        conf: Result<NetConf, String>,
        follow: bool,
        peers: usize,
    ) -> Result<(), StoreFault> {
        let unusable = |why: String| StoreFault::ConfigUnusable { why: why.into() };
        let conf = conf.map_err(unusable)?;
        if !follow || !self.own_lease.may_follow(&conf, peers)? {
            return Ok(());
        }
        conf.backend.suits(&self.node.uplink).map_err(unusable)?;
        self.locks.take_config(&conf.config()).map_err(|error| unusable(format!("{error:#}")))?;
        self.own_lease.follow(&conf);
        self.config = self.flags.config(&conf);
        info!("the network config has changed, backend is {}", self.config.backend);
        self.show(None);
        Ok(())
    }

    /// Reads the kernel. A monitor that does not yet hear all that concerns us is told first, and the kernel read after.
    fn look(&mut self, leases: &Leases) -> Result<Seen, kernel::Error> {
        let mut bounds = plan::bounds(&self.config, &self.node, leases);
        let healths = self.probes.healths.borrow().clone();
        let faulty = healths.iter().filter(|health| health.verdict.finding.is_fault());
        plan::name_faulty(&mut bounds, faulty.map(|health| health.verdict.subnet));
        loop {
            let seen = self.kernel.dump(&bounds)?;
            if self.memory.interest.as_ref() == Some(&seen.interest) {
                return Ok(seen);
            }
            self.filter.set(&seen.interest)?;
            self.memory.interest = Some(seen.interest);
        }
    }

    fn blind(&mut self, error: &kernel::Error) -> Instant {
        let trouble =
            Trouble::new("blind", format_args!("the kernel cannot be read, nothing is changed: {error}"));
        log(self.memory.notebook.say(trouble, Instant::now()));
        self.set_fault(Some(format!("the kernel cannot be read: {error}")));
        Instant::now() + BLIND_RETRY
    }

    fn apply(
        &mut self,
        mut ops: Vec<Op>,
        wanted: Wanted,
        begun: (Causes, Instant),
    ) -> (Round, Option<Instant>) {
        let (causes, begun) = begun;
        let refused = &self.memory.refused;
        ops.retain(|op| refused_sysctl(op).is_none_or(|fault| !refused.contains(&fault)));
        let Admitted { ops, held, due } = self.memory.backoff.admit(ops, begun);
        let outcomes = self.kernel.apply(&ops);
        let mut failed = Vec::new();
        for (op, outcome) in ops.iter().zip(outcomes) {
            if let Outcome::Failed(error) = outcome {
                if error.is_denial() {
                    self.memory.refused.extend(refused_sysctl(op));
                }
                if error.is_busy() {
                    self.memory.backoff.forgive(op);
                }
                failed.push((op.clone(), error));
            }
        }
        self.memory.backoff.hear(&ops, &failed);
        // What failed or was held is tried again though nothing may happen meanwhile.
        let again = (!failed.is_empty()).then_some(begun + FAILED_RETRY);
        let due = due.into_iter().chain(again).min();
        let Wanted { peers, notes, owned, firewall, .. } = wanted;
        self.show_firewall(firewall);
        if owned.sweep == Sweep::LeftOvers && failed.is_empty() && held.is_empty() {
            // All that was left over is gone, and what comes after is not flannel's.
            let links = std::mem::take(&mut self.node.former.links);
            self.node.former = Former { links, ..Former::default() };
        }
        (Round { causes, ops, failed, held, notes, peers, took: begun.elapsed() }, due)
    }

    /// Logs what is new; an idle round says nothing, and neither does one that gets nowhere again.
    fn tell(&mut self, round: &Round) {
        let now = Instant::now();
        if round.ops.len() > round.failed.len() && self.memory.notebook.tells_change(now) {
            info!("{}", round.line());
        }
        let failed = round.failed.iter().map(|(_, error)| Trouble::new("refused", error));
        // The number in it grows, and is no news.
        let held = round.held.iter().map(|held| match &held.refusal {
            Some(refusal) => Trouble::new(
                "held",
                format_args!("put off, because it is refused again and again: {refusal}"),
            ),
            None => Trouble::new(
                "held",
                format_args!(
                    "put off, because it keeps coming back (is something else managing it?): {}",
                    held.op
                ),
            ),
        });
        let notes = Trouble::all(&round.notes);
        log(self.memory.notebook.turn(notes, failed.chain(held), now));
        tell_left_out();
    }

    fn set_fault(&mut self, fault: Option<String>) {
        match (&mut self.memory.fault, fault.map(printed)) {
            (known, None) => *known = None,
            (Some((known, _)), Some(fault)) => *known = fault,
            (known, Some(fault)) => {
                let now = Instant::now();
                let trouble = Trouble::new("not in order", format_args!("not in order: {fault}"));
                *known = Some((fault, now));
                log(self.memory.notebook.say(trouble, now));
            }
        }
        let fault = self.memory.fault.clone();
        self.board.send_modify(|report| Arc::make_mut(report).set_fault(fault));
    }
}

fn log(lines: impl IntoIterator<Item = Line>) {
    for line in lines {
        match line {
            Line::Warn(text) => warn!("{text}"),
            Line::Info(text) => info!("{text}"),
        }
    }
}

/// What became of the uplink since the last look.
enum Uplinks {
    Same,
    Another,
    Lost,
}

/// What the store says, weighed.
struct Heard {
    leases: Leases,
    notes: Vec<Note>,
    /// When it has to be weighed again though nothing is heard.
    due: Option<Instant>,
}
