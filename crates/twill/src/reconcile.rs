//! The reconcile loop: waits for a cause, reads the kernel, plans, applies the difference and reports the outcome. All of
//! its state belongs to one thread.

mod departed;
mod fault;
mod keep;
mod on_disk;
mod publish;
mod settings;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use kernel::{Filter, Kernel, Observed, Outcome};
use plan::backend::Direct;
use plan::config::Config;
use plan::firewall::ToolChoice;
use plan::lease::Leases;
use plan::lease_conflicts::{Evidence, LeaseConflicts};
use plan::left_overs::LeftOvers;
use plan::netconf::NetConf;
use plan::node::Node;
use plan::other_daemons::{FirewallKeeper, OtherDaemons};
use plan::owned::Owned;
use plan::shrink_guard::{AcceptedLeases, ShrinkGuard, StoreHistory};
use plan::text::printed;
use plan::underlay::{LinkFacts, Underlay};
use plan::uplink::UplinkChoice;
use plan::uplink_follower::{Followed, Follower};
use plan::warning::{NodeFault, StoreFault, Warning};
use plan::{HealthInput, Mac, PeerPath, Plan, Situation};
use store::View;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::backoff::{Admitted, Backoff};
use crate::cache::Cache;
use crate::diff_requests::DiffResponder;
use crate::flags::Flags;
use crate::footprint::Footprint;
use crate::identity::choose_uplink;
use crate::locks::Locks;
use crate::logging::log_left_out;
use crate::metrics::Metrics;
use crate::own_lease::{OwnLease, OwnLeaseStatus};
use crate::pass::Pass;
use crate::probe::{AddressConflict, ProbeFaults, ProbeMode, Probes};
use crate::report::ReportSender;
use crate::report::peers::has_answered;
use crate::trigger::{Cause, Causes, Trigger};
use crate::warning_log::{Line, WarningLog, WarningText};
use departed::Departed;
use fault::{own_fault, rules_fault};
use publish::in_force;

/// Time until the kernel is read again after a failed read.
const UNREADABLE_RETRY: Duration = Duration::from_secs(1);
/// Time until a lost uplink is looked for again. The monitor reports no events of interfaces that are not ours.
const UPLINK_RETRY: Duration = Duration::from_secs(1);
/// Time until the subnet file is written again after a failed write.
const FILE_RETRY: Duration = Duration::from_secs(2);
/// Maximum time until a refused op is tried again. Other causes may start a pass earlier.
const FAILED_RETRY: Duration = Duration::from_millis(250);

/// State of the reconcile loop, owned by its thread.
pub(crate) struct Reconciler {
    pub(crate) kernel: Kernel,
    pub(crate) filter: Filter,
    pub(crate) config: Config,
    pub(crate) node: Node,
    /// Reason for the choice of the uplink.
    pub(crate) uplink_reason: String,
    pub(crate) own_lease: OwnLease,
    pub(crate) locks: Locks,
    pub(crate) view: watch::Receiver<View>,
    pub(crate) cache: Cache,
    pub(crate) flags: Flags,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) report_sender: ReportSender,
    pub(crate) diff_responder: DiffResponder,
    pub(crate) probes: Probes,
    pub(crate) memory: Memory,
}

/// State that one pass leaves for the next. A pass gives the right result without it, too.
#[derive(Default)]
pub(crate) struct Memory {
    backoff: Backoff,
    shrink_guard: ShrinkGuard,
    lease_conflicts: LeaseConflicts,
    plan: plan::Memory,
    others: OtherDaemons,
    warning_log: WarningLog,
    /// Interest that the monitor's filter is set to.
    interest: Option<kernel::Interest>,
    /// Fault of this node's own part, and its beginning.
    fault: Option<(String, Instant)>,
    footprint: Option<Footprint>,
    departed: Departed,
    /// Manager of the traffic rules and the reason for it, as last logged.
    firewall: Option<ToolChoice>,
    /// Last renewal of the rules that drop packets.
    renewed: Option<Instant>,
    /// Current uplink addresses and those that the node had before.
    follower: Follower,
    /// Time of the first pass, from which the follower counts.
    begun: Option<Instant>,
    /// Peers with the paths that the last pass left in force, by subnet.
    peers: Arc<Vec<PeerPath>>,
    /// Number of passes that were caused by a change of a link.
    link_changes: u64,
    /// Number of passes that were published.
    passes: u64,
    /// True once this node was ready.
    was_ready: bool,
}

impl Memory {
    /// Starts with the leases that an earlier run remembered. The store's first list is judged against them, however
    /// early it arrives.
    pub(crate) fn from_cache(
        remembered: &Leases,
        history: Option<StoreHistory>,
        node: &Node,
        former: LeftOvers,
    ) -> Self {
        let shrink_guard = ShrinkGuard::new(remembered.known(), node.subnet, history);
        Self { shrink_guard, plan: plan::Memory::of(former), ..Self::default() }
    }

    /// Sets the addresses that an earlier run announced, since the node may get them back.
    pub(crate) fn with_former_addresses(self, home: Vec<IpAddr>) -> Self {
        Self { follower: Follower::with_former_addresses(home), ..self }
    }
}

impl Reconciler {
    /// Runs the loop for the life of the process.
    pub(crate) fn run(mut self, mut trigger: Trigger) -> ! {
        // The first pass serves every cause that was sent before it.
        trigger.clear();
        self.report_settings();
        self.connect_healths();
        let mut causes = Causes::from([Cause::Start]);
        loop {
            let retry = self.run_pass(causes);
            causes = trigger.wait(retry);
        }
    }

    /// Runs one pass. Returns the time at which the next one is due without a cause, if there is such a time.
    fn run_pass(&mut self, causes: Causes) -> Option<Instant> {
        let begun = Instant::now();
        let view = self.take_view();
        let hangup = causes.contains(&Cause::Hangup);
        let Believed { leases, warnings, due: leases_due } = self.believe(&view, hangup, begun);
        let scope = self.scope(&leases);
        let observed = match self.observe(&scope, &causes) {
            Ok(observed) => observed,
            Err(error) => return Some(self.report_unreadable(&error)),
        };
        let uplink_due = match self.follow_uplink(&observed.underlay) {
            // The state was read for the old uplink.
            UplinkChange::Another => return Some(begun),
            UplinkChange::Same => None,
            UplinkChange::Lost => Some(begun + UPLINK_RETRY),
        };
        let mut plan = self.plan(&leases, &scope, &observed, begun);
        if let Some(first) = &plan.contradiction {
            self.report_contradiction(first);
            return None;
        }
        if uplink_due.is_none() && self.follow_mtu(&leases, &plan.peers, &observed.underlay) {
            return Some(begun);
        }
        self.memory.departed.drop_reports(&mut plan, begun);
        plan.warnings.extend(warnings);
        plan.warnings.extend(self.probe_warnings());
        plan.warnings.extend(self.write_footprint(&plan.owned));
        self.diff_responder.answer(&plan.ops);
        let uplink = UplinkState::of(observed.underlay.link(self.node.uplink.link));
        drop(observed);
        let kept = plan.kept();
        let Applied { mut pass, peers, diverted, due: ops_due } = self.apply(plan, causes, begun);
        self.keep_rules(&kept, &pass, begun);
        // The lease is kept after the ops are applied, so that it announces only devices that exist.
        let OwnLeaseStatus { fault, due: lease_due } = self.keep_lease(&view, &peers);
        pass.warnings.extend(fault.map(Warning::Store));
        let cache_due = uplink.mac.and_then(|mac| self.write_cache(&view, &leases, mac));
        pass.warnings.extend(self.cache.warning());
        let healths = self.probes.healths.borrow().clone();
        pass.sort_warnings(|subnet| has_answered(&healths, subnet));
        self.log_pass(&pass);
        self.send_targets(&pass.causes, &peers, uplink, diverted);
        let is_programmed = leases != Leases::Unknown;
        let own = own_fault(&pass, &self.config.backend.devices(self.config.families()));
        let unwritten = if is_programmed && own.is_none() { self.write_subnet_file().err() } else { None };
        let file_due = unwritten.as_ref().map(|_| begun + FILE_RETRY);
        self.set_fault(own.or(unwritten).or_else(|| rules_fault(&pass)));
        self.count(&pass, &peers, view.lost.is_some());
        self.publish(&pass, peers, view.lost, is_programmed);
        let conflicts_due = self.memory.lease_conflicts.due();
        [leases_due, uplink_due, ops_due, lease_due, cache_due, file_due, conflicts_due]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns the store's current state. A new one makes the cache out of date.
    fn take_view(&mut self) -> View {
        if self.view.has_changed().unwrap_or(false) {
            self.cache.mark_stale();
        }
        self.view.borrow_and_update().clone()
    }

    /// Adopts the uplink's current name and addresses.
    fn follow_uplink(&mut self, underlay: &Underlay) -> UplinkChange {
        let now = self.memory.begun.get_or_insert_with(Instant::now).elapsed();
        let (flags, config, kernel) = (&self.flags, &self.config, &mut self.kernel);
        let choose =
            |remembered: &[IpAddr]| choose_uplink(flags, config, underlay, kernel, remembered.to_vec()).ok();
        let followed = self.memory.follower.follow(&self.node.uplink, underlay, now, choose);
        let UplinkChoice { mut uplink, reason: why, .. } = match followed {
            Followed::Lost => return UplinkChange::Lost,
            Followed::Here => return UplinkChange::Same,
            Followed::Moved(choice) => choice,
        };
        uplink.mtu = self.node.uplink.mtu;
        if uplink == self.node.uplink {
            return UplinkChange::Same;
        }
        let addresses = [uplink.ipv4.map(IpAddr::V4), uplink.ipv6.map(IpAddr::V6)];
        let addresses: Vec<_> = addresses.iter().flatten().map(IpAddr::to_string).collect();
        info!("uplink is now {} {}: {why}", uplink.link, addresses.join(", "));
        self.own_lease.set_addresses(&uplink);
        self.uplink_reason = why;
        self.node.uplink = uplink;
        self.report_settings();
        UplinkChange::Another
    }

    /// Adopts the smallest MTU towards the peers of a plan. Returns true if it was another one until now; the plan is then
    /// out of date.
    fn follow_mtu(&mut self, leases: &Leases, peers: &[PeerPath], underlay: &Underlay) -> bool {
        let mtu = plan::uplink::mtu(&self.config, leases, peers, &self.node.uplink, underlay);
        if mtu == self.node.uplink.mtu {
            return false;
        }
        self.node.uplink.mtu = mtu;
        info!("uplink {} now has MTU {mtu}", self.node.uplink.link);
        self.report_settings();
        true
    }

    /// Returns the bounds within which the kernel is read, and locks the tunnels of our devices.
    fn scope(&mut self, leases: &Leases) -> Owned {
        let Self { config, node, memory, locks, probes, .. } = self;
        let healths = probes.healths.borrow().clone();
        let scope = |others: &OtherDaemons| {
            let faulty = healths.iter().filter(|health| health.peer.finding.is_fault());
            let faulty = faulty.map(|health| health.peer.subnet);
            plan::scope(config, node, leases, others, &memory.plan, faulty)
        };
        if *leases == Leases::Unknown {
            return scope(&memory.others);
        }
        let alone = OtherDaemons { tunnels: Vec::new(), ..memory.others.clone() };
        let all = scope(&alone);
        let others = OtherDaemons { tunnels: locks.keep_tunnels(&all.tunnels), ..alone };
        let scope = if others.tunnels.is_empty() { all } else { scope(&others) };
        memory.others = others;
        scope
    }

    /// Plans what has to change in the kernel.
    fn plan(&mut self, leases: &Leases, scope: &Owned, observed: &Observed, now: Instant) -> Plan {
        let healths = self.probes.healths.borrow_and_update().clone();
        let (uplink, probed) = (self.node.uplink.link, self.flags.probe != ProbeMode::Off);
        let evidence = Evidence { healths: &healths, observed: &observed.state, uplink, probed };
        let contenders = self.memory.lease_conflicts.contenders(&self.config, leases, evidence, now);
        // Health without a path and without a fault has no effect, so it is left out.
        let peers = healths.iter().map(|health| &health.peer);
        let peers = peers.filter(|peer| peer.preferred_path.is_some() || peer.finding.is_fault());
        let health = HealthInput { peers: peers.cloned().collect(), contenders };
        plan::plan(&Situation {
            config: &self.config,
            node: &self.node,
            leases,
            health: &health,
            others: &self.memory.others,
            scope,
            observed: &observed.state,
            underlay: &observed.underlay,
            memory: &self.memory.plan,
        })
    }

    /// Returns warnings if no path can be verified.
    fn probe_warnings(&mut self) -> impl Iterator<Item = Warning> + use<> {
        let verified = self.config.backend.direct() == Direct::Verified;
        let off = (verified && self.flags.probe == ProbeMode::Off).then_some(NodeFault::NothingVerified);
        let ProbeFaults { refused, conflict } = self.probes.faults.borrow_and_update().clone();
        let refused = refused.map(|why| NodeFault::NoProbeSocket { why, direct: verified });
        let uplink = self.node.uplink.link;
        let taken =
            conflict.map(|AddressConflict { address, mac }| NodeFault::AddressTaken { uplink, address, mac });
        [off, refused, taken].into_iter().flatten().map(Warning::Node)
    }

    /// Checks our lease against the list. While the store is lost the list is not current, and only the end of our lease
    /// counts.
    fn keep_lease(&mut self, view: &View, peers: &[PeerPath]) -> OwnLeaseStatus {
        match &view.leases {
            Leases::Listed(listed) if view.lost.is_none() => {
                self.own_lease.maintain(listed, &self.node, peers, Instant::now())
            }
            _ => OwnLeaseStatus::until(view.own_until, SystemTime::now()),
        }
    }

    /// Decides which leases and which network config count. `hangup` (SIGHUP) reads the config again even if changes are
    /// not followed.
    fn believe(&mut self, view: &View, hangup: bool, now: Instant) -> Believed {
        // A daemon that wants no rules takes none from another daemon, but removes those that were its own.
        let former = &mut self.memory.plan.former;
        former.firewall |= self.config.wants_rules();
        self.memory.others.firewall = match former.firewall.then(|| self.locks.keep_firewall()) {
            Some(keeper) => keeper,
            None => FirewallKeeper::Nobody,
        };
        let mut believed = Believed { leases: Leases::Unknown, warnings: view.warnings.clone(), due: None };
        let follow = self.flags.config_reload || hangup;
        let conf = if hangup && !self.flags.config_reload {
            self.own_lease
                .conf_in_store()
                .map(|conf| conf.map_err(|error| error.to_string()))
                .or(view.conf.clone())
        } else {
            view.conf.clone()
        };
        let listed = view.leases.known().iter().filter(|lease| lease.subnet != self.node.subnet).count();
        let peers = listed.max(self.memory.shrink_guard.peers());
        if let Some(Err(fault)) = conf.map(|conf| self.reconfigure(conf, follow, peers)) {
            believed.warnings.push(Warning::Store(fault));
        }
        let (Leases::Listed(list) | Leases::Remembered(list)) = &view.leases else { return believed };
        let AcceptedLeases { leases, missing, due } =
            self.memory.shrink_guard.accept(list, view.history, now, self.flags.shrink_grace);
        if missing > 0 {
            believed.warnings.push(Warning::Store(StoreFault::PeersMissing));
        }
        believed.due = due;
        believed.leases = match view.leases {
            Leases::Listed(_) => Leases::Listed(leases),
            Leases::Remembered(_) if view.lost.is_some() => Leases::Remembered(leases),
            // The store may still answer, so the remembered leases do not count yet.
            _ => return believed,
        };
        believed
    }

    /// Adopts a changed network config as far as it may change under running pods. Otherwise the last good one stays, and
    /// the error says why.
    fn reconfigure(
        &mut self,
        conf: Result<NetConf, String>,
        follow: bool,
        peers: usize,
    ) -> Result<(), StoreFault> {
        let unusable = |why: String| StoreFault::ConfigUnusable { why: why.into() };
        let conf = conf.map_err(unusable)?;
        if !follow || !self.own_lease.check_conf_change(&conf, peers)? {
            return Ok(());
        }
        conf.backend.suits(&self.node.uplink).map_err(unusable)?;
        self.locks.take_config(&conf.config()).map_err(|error| unusable(format!("{error:#}")))?;
        self.own_lease.set_conf(&conf);
        self.config = self.flags.config(&conf);
        info!("the network config has changed, backend is {}", self.config.backend);
        self.report_settings();
        Ok(())
    }

    /// Reads the kernel, and the traffic rules again if a cause concerns them. If the monitor's filter does not cover
    /// everything that concerns us, it is widened and the kernel is read again.
    fn observe(&mut self, scope: &Owned, causes: &Causes) -> Result<Observed, kernel::Error> {
        if causes.iter().any(Cause::is_about_rules) {
            self.kernel.forget_firewall();
        }
        loop {
            let observed = self.kernel.dump(scope)?;
            if self.memory.interest.as_ref() == Some(&observed.interest) {
                return Ok(observed);
            }
            self.filter.set(&observed.interest)?;
            self.memory.interest = Some(observed.interest);
        }
    }

    /// Reports a plan that is not applied because of a contradiction in it.
    fn report_contradiction(&mut self, contradiction: &str) {
        error!("the plan contradicts itself and is not applied; please report this: {contradiction}");
        self.set_fault(Some(format!("the plan contradicts itself: {contradiction}")));
    }

    fn report_unreadable(&mut self, error: &kernel::Error) -> Instant {
        let warning =
            WarningText::new("blind", format_args!("the kernel cannot be read; nothing is changed: {error}"));
        log(self.memory.warning_log.line_for(warning, Instant::now()));
        self.set_fault(Some(format!("the kernel cannot be read: {error}")));
        Instant::now() + UNREADABLE_RETRY
    }

    /// Applies the plan's ops, and returns the outcome.
    fn apply(&mut self, plan: Plan, causes: Causes, begun: Instant) -> Applied {
        let sweeps = plan.sweeps();
        let Plan { mut ops, peers, warnings, firewall, diverted, memory, .. } = plan;
        self.memory.plan = memory;
        ops.retain(|op| !self.memory.plan.refuses(op));
        let Admitted { ops, delayed, due } = self.memory.backoff.admit(ops, begun);
        let outcomes = self.kernel.apply(&ops);
        let mut failed = Vec::new();
        for (op, outcome) in ops.iter().zip(outcomes) {
            if let Outcome::Failed(error) = outcome {
                if error.is_denial() {
                    self.memory.plan.refuse(op, &error.cause.to_string());
                }
                if error.is_busy() {
                    self.memory.backoff.forgive(op);
                }
                failed.push((op.clone(), error));
            }
        }
        self.memory.backoff.record(&ops, &failed);
        // A failed op is tried again even if no cause comes.
        let again = (!failed.is_empty()).then_some(begun + FAILED_RETRY);
        let due = due.into_iter().chain(again).min();
        self.report_firewall(firewall);
        if sweeps && failed.is_empty() && delayed.is_empty() {
            self.memory.plan.set_swept();
        }
        let pass = Pass { causes, ops, failed, delayed, warnings, duration: begun.elapsed() };
        let peers = Arc::new(in_force(peers, &pass, &self.memory.peers, self.config.table));
        Applied { pass, peers, diverted, due }
    }

    /// Logs changes and new warnings. An idle pass logs nothing, nor does one whose ops were all refused again.
    fn log_pass(&mut self, pass: &Pass) {
        let now = Instant::now();
        if pass.ops.len() > pass.failed.len() && self.memory.warning_log.may_log_change(now) {
            info!("{}", pass.line());
        }
        let failed = pass.failed.iter().map(|(_, error)| WarningText::new("refused", error));
        // The number of attempts grows with each pass and is no news, so the text leaves it out.
        let delayed = pass.delayed.iter().map(|delayed| match &delayed.refusal {
            Some(refusal) => WarningText::new(
                "delayed",
                format_args!("retrying less often, because the kernel refuses it again and again: {refusal}"),
            ),
            None => WarningText::new(
                "delayed",
                format_args!(
                    "retrying less often, because it is undone again and again (does another program manage it?): {}",
                    delayed.op
                ),
            ),
        });
        let warnings = WarningText::all(&pass.warnings);
        log(self.memory.warning_log.lines_due(warnings, failed.chain(delayed), now));
        log_left_out();
    }

    fn set_fault(&mut self, fault: Option<String>) {
        match (&mut self.memory.fault, fault.map(printed)) {
            (known, None) => *known = None,
            (Some((known, _)), Some(fault)) => *known = fault,
            (known, Some(fault)) => {
                let now = Instant::now();
                let warning =
                    WarningText::new("not in order", format_args!("this node has a fault: {fault}"));
                *known = Some((fault, now));
                log(self.memory.warning_log.line_for(warning, now));
            }
        }
        let fault = self.memory.fault.clone();
        self.report_sender.send_modify(|report| Arc::make_mut(report).set_fault(fault));
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

/// Change of the uplink since the last pass.
enum UplinkChange {
    Same,
    Another,
    Lost,
}

/// State of the uplink's interface at the time of a pass.
#[derive(Clone, Copy)]
struct UplinkState {
    /// MAC of the interface; `None` if it is missing.
    mac: Option<Mac>,
    /// True if the interface cannot carry anything. A lost probe then says nothing about peers.
    is_suspect: bool,
}

impl UplinkState {
    fn of(link: Option<&LinkFacts>) -> Self {
        let is_suspect = !link.is_some_and(|link| link.up && link.carrier);
        Self { mac: link.map(|link| link.mac), is_suspect }
    }
}

/// Outcome of a plan.
struct Applied {
    pass: Pass,
    /// Peers with the paths that are in force, by subnet.
    peers: Arc<Vec<PeerPath>>,
    /// Subnets of peers whose packets a policy rule or route of this node diverts.
    diverted: Vec<IpNet>,
    /// Time at which a refused or delayed op is tried again.
    due: Option<Instant>,
}

/// Leases and warnings from the store, as far as they are believed.
struct Believed {
    leases: Leases,
    warnings: Vec<Warning>,
    /// Time at which they must be judged again even without news from the store.
    due: Option<Instant>,
}
