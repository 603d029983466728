//! Establishes at start who this node is: network config in force, uplink and lease. It waits for the store as long as it
//! takes, or continues with the state that the last run remembered. It changes nothing in the kernel.

use std::cell::Cell;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use kernel::Kernel;
use plan::backend::{self, Announced};
use plan::config::Config;
use plan::ip_address::is_link_local;
use plan::lease::{Lease, Leases};
use plan::left_overs::LeftOvers;
use plan::netconf::NetConf;
use plan::node::{Node, Uplink};
use plan::owned::Writer;
use plan::shrink_guard::StoreHistory;
use plan::state::MAIN_TABLE;
use plan::subnet::Subnet;
use plan::subnet_alloc::Requester;
use plan::underlay::Underlay;
use plan::uplink::{self, Ask, Exit, Reach, UplinkChoice};
use plan::uplink_follower::LOST_ADDRESS_WAIT;
use plan::{Family, Mac, TunnelId};
use store::StoreError;
use tracing::{info, warn};

use crate::cache::{Cache, CachedState};
use crate::flags::Flags;
use crate::footprint::Footprint;
use crate::locks::Locks;
use crate::own_lease::{Macs, OwnLease, StoreHandle};
use crate::probe::Holder;
use crate::report::{self, ReportSender};
use crate::{notify, probe, subnet_file};

/// Distant addresses, one per family. If the main table has no default route, the kernel is asked for its route to them.
/// Nothing is sent.
const FAR: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8)), IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1))];
/// Time between two attempts.
const RETRY: Duration = Duration::from_secs(1);
/// Time without the store after which the remembered state is used. A store that merely starts is back sooner.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// Network config in force, and this node's place in it.
pub(crate) struct Identity {
    pub(crate) config: Config,
    pub(crate) node: Node,
    /// Left-overs of an earlier daemon on this node.
    pub(crate) former: LeftOvers,
    /// Reason for the choice of the uplink.
    pub(crate) uplink_reason: String,
    pub(crate) own_lease: OwnLease,
    /// Leases that the last run remembered; `Unknown` if they cannot be used.
    pub(crate) remembered: Leases,
    /// Position in the store's history that the last run remembered.
    pub(crate) history: Option<StoreHistory>,
    /// Addresses of the uplink that the last run announced.
    pub(crate) home: Vec<IpAddr>,
}

/// This node's place in the underlay.
pub(crate) struct Place {
    pub(crate) underlay: Underlay,
    pub(crate) choice: UplinkChoice,
    pub(crate) requester: Requester,
    /// Random MACs (IPv4, IPv6) for VTEPs that have none yet.
    drawn: [Mac; 2],
}

/// Waits for the network config, then for a lease under it. If the config changes before there is a lease, it starts
/// again. Returns an error if another daemon holds a lock, no uplink can be chosen, or the store refuses the lease.
pub(crate) fn establish(
    flags: &Flags,
    source: &StoreHandle,
    kernel: &mut Kernel,
    locks: &mut Locks,
    cache: &Cache,
    report_sender: &ReportSender,
) -> anyhow::Result<Identity> {
    let remembered = cache.read().map(|remembered| remembered.with_backend(flags.backend_type.as_ref()));
    let begun = Instant::now();
    let dice = u64::from_ne_bytes(draw()?);
    loop {
        let read = || source.net_conf();
        let conf = until_done(report_sender, begun, "the network config", read, || {
            let remembered = remembered.as_ref()?;
            is_here(remembered, flags, kernel).then(|| remembered.conf.clone())
        });
        let config = conf.config();
        locks.take_config(&config)?;
        let home = remembered.as_ref().map(|remembered| own_addresses(remembered, flags)).unwrap_or_default();
        let mut place = Place::find_settled(flags, &conf, kernel, &home, source)?;
        place.choice.failures.iter().for_each(|failure| warn!("uplink flag skipped: {failure}"));
        info!("uplink is {}: {}", place.choice.uplink.link, place.choice.reason);
        let remembered = remembered.as_ref().filter(|remembered| place.matches_cache(remembered, &conf));
        let history = remembered.and_then(|remembered| remembered.history);
        place.requester.held = remembered.and_then(CachedState::own);
        let own_lease = OwnLease::new(source.clone(), conf, place.requester.clone());
        let is_refused = Cell::new(false);
        let take = || match source.net_conf() {
            Ok(now) if now != *own_lease.conf() => Ok(None),
            _ => {
                let taken = place.take(&own_lease, &config, dice);
                is_refused.set(taken.as_ref().is_err_and(StoreError::is_refusal));
                taken.map(Some)
            }
        };
        let own = || {
            let lease = remembered?.own().filter(|lease| place.requester.owns(lease) && !is_refused.get())?;
            Some(Some(Ok(lease)))
        };
        if let Some(lease) = until_done(report_sender, begun, "a lease", take, own) {
            let lease = lease?;
            let remembered = remembered.map_or(Leases::Unknown, CachedState::leases);
            let (own_lease, lease) = own_lease.with_lease(lease);
            let identity = place.identity(flags, locks, own_lease, &lease, remembered);
            return Ok(Identity { history, home, ..identity });
        }
        info!("the network config has changed before there was a lease");
    }
}

impl Place {
    /// Chooses the uplink. If the interface has several addresses, one in `known` comes first. Returns an error if the
    /// kernel cannot be read or no interface fits.
    pub(crate) fn find(
        flags: &Flags,
        config: &Config,
        kernel: &mut Kernel,
        known: &[IpAddr],
    ) -> anyhow::Result<Self> {
        let underlay = kernel.underlay(&config.all_pods()).context("reading this node's interfaces")?;
        let devices = config.backend.devices(config.families());
        let standing = devices.iter().filter_map(|name| underlay.link(*name)?.local);
        let remembered = standing.chain(known.iter().copied()).collect();
        let choice = choose_uplink(flags, config, &underlay, kernel, remembered)?;
        let previous = subnet_file::previous(&flags.subnet_file);
        let requester =
            Requester { previous, vteps: backend::standing(&underlay), ..Requester::at(&choice.uplink) };
        let drawn = [Mac::local_unicast(draw()?), Mac::local_unicast(draw()?)];
        Ok(Self { underlay, choice, requester, drawn })
    }

    /// Chooses the uplink at start, where the first look may be wrong. A node that has only a makeshift address waits up
    /// to [`LOST_ADDRESS_WAIT`] for its own. If nothing on the node shows which of several addresses is its own, the store's leases
    /// may.
    fn find_settled(
        flags: &Flags,
        conf: &NetConf,
        kernel: &mut Kernel,
        home: &[IpAddr],
        source: &StoreHandle,
    ) -> anyhow::Result<Self> {
        let config = conf.config();
        let begun = Instant::now();
        let mut logged = false;
        loop {
            let place = Self::find(flags, &config, kernel, home)?;
            let is_home = home.is_empty() || home.iter().any(|address| place.has(*address));
            let is_makeshift = uplink::is_makeshift(&place.underlay, &place.choice.uplink);
            if is_home || !is_makeshift || begun.elapsed() >= LOST_ADDRESS_WAIT {
                if !place.is_ambiguous(home) {
                    return Ok(place);
                }
                let leases = source.leases(conf).unwrap_or_default();
                let leased = uplink::leased(&leases, &place.underlay, place.requester.previous);
                return Self::find(flags, &config, kernel, &[home, &leased].concat());
            }
            if !logged {
                let (home, hold) = (joined(home), LOST_ADDRESS_WAIT.as_secs());
                info!("waiting up to {hold} s for {home}, which this node had before");
                logged = true;
            }
            notify::alive();
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    /// Returns true if this node has that address.
    fn has(&self, address: IpAddr) -> bool {
        self.underlay.addresses.iter().any(|facts| facts.address.addr() == address)
    }

    /// Returns true if the uplink has several addresses and nothing on the node shows which one is its own.
    fn is_ambiguous(&self, home: &[IpAddr]) -> bool {
        let Uplink { link, .. } = self.choice.uplink;
        self.choice.uplink.addresses().any(|chosen| {
            let is_local = self.underlay.links.iter().any(|link| link.local == Some(chosen));
            let others = self.underlay.addresses.iter().filter(|facts| {
                let address = facts.address.addr();
                let lasting = Family::of(address) == Family::of(chosen) && !is_link_local(address);
                facts.link == link && lasting && address != chosen
            });
            !home.contains(&chosen) && !is_local && others.count() > 0
        })
    }

    /// Returns true if `remembered` was written with this uplink and under the same pod networks.
    fn matches_cache(&self, remembered: &CachedState, conf: &NetConf) -> bool {
        let CachedState { uplink_mac, conf: then, .. } = remembered;
        *uplink_mac == self.uplink_mac() && (&then.ipv4, &then.ipv6) == (&conf.ipv4, &conf.ipv6)
    }

    /// Takes our lease. Another node's lease with our address is a dead one if no machine of the segment answers for
    /// it. Returns the inner error if one does. The outer error is a reason to try again; it is a refusal if the
    /// segment cannot be asked.
    fn take(
        &self,
        own_lease: &OwnLease,
        config: &Config,
        dice: u64,
    ) -> Result<Result<Lease, StoreError>, StoreError> {
        let refused = match own_lease.acquire(self.macs(config), dice, false) {
            Err(refused) if refused.is_refusal() => refused,
            taken => return taken.map(Ok),
        };
        let Some(address) = self.choice.uplink.addresses().next() else { return Err(refused) };
        match self.holder(address) {
            Holder::Unknown => Err(refused),
            Holder::Machine(mac) => {
                warn!("a machine with MAC {mac} answers for our address {address}");
                Ok(Err(refused))
            }
            Holder::Nobody => {
                warn!("no other machine answers for {address}, so a lease counts as left over: {refused}");
                own_lease.acquire(self.macs(config), dice, true).map(Ok)
            }
        }
    }

    /// Asks the uplink's segment for another machine with our address. Only an address that we announce and that has a
    /// segment can be asked for. Silence means nothing without a carrier.
    fn holder(&self, address: IpAddr) -> Holder {
        let Uplink { link, .. } = self.choice.uplink;
        let is_up = self.underlay.link(link).is_some_and(|facts| facts.up && facts.carrier);
        let is_announced = self.choice.uplink.public(Family::of(address)) == Some(address);
        let has_segment =
            self.underlay.addresses.iter().any(|facts| {
                facts.link == link && facts.address.addr() == address && !facts.is_of_host_alone()
            });
        if is_up && is_announced && has_segment { probe::holder(link, address) } else { Holder::Unknown }
    }

    /// Returns this node's identity with the lease that it holds.
    fn identity(
        self,
        flags: &Flags,
        locks: &mut Locks,
        own_lease: OwnLease,
        lease: &Lease,
        remembered: Leases,
    ) -> Identity {
        let footprint = Footprint::read(&Footprint::path(&flags.subnet_file));
        let networks = subnet_file::networks(&flags.subnet_file);
        let mut former = self.former(lease, footprint.as_ref(), &networks);
        // A daemon that has locked the tunnel has made the device its own.
        former.links.retain(|link| TunnelId::of_device(*link).is_none_or(|id| !locks.is_others_tunnel(id)));
        let config = flags.config(own_lease.conf());
        let node = self.node(lease);
        let (uplink_reason, history, home) = (self.choice.reason, None, Vec::new());
        Identity { config, node, former, uplink_reason, own_lease, remembered, history, home }
    }

    /// Returns the function that gives the MACs of the VTEPs: existing ones, else drawn ones.
    fn macs(&self, config: &Config) -> impl Macs + use<> {
        let (backend, underlay, drawn) = (config.backend.clone(), self.underlay.clone(), self.drawn);
        move |held: Option<&Announced>| backend.macs(held, &underlay, drawn)
    }

    /// Returns the random MACs (IPv4, IPv6) for VTEPs that have none yet.
    pub(crate) fn drawn(&self) -> [Mac; 2] {
        self.drawn
    }

    /// Returns this node with that lease, as input of the plan.
    pub(crate) fn node(&self, lease: &Lease) -> Node {
        let [vtep, vtep_v6] = lease.announced.macs();
        // A node that announces no VTEP still needs one for peers that do.
        let (vtep, vtep_v6) = (vtep.or(Some(self.drawn[0])), vtep_v6.or(Some(self.drawn[1])));
        let uplink = self.choice.uplink.clone();
        Node { uplink, subnet: lease.subnet, vtep, vtep_v6 }
    }

    /// Returns what an earlier daemon may have left on this node. flannel leaves no footprint, so it may always have run
    /// since.
    pub(crate) fn former(
        &self,
        lease: &Lease,
        footprint: Option<&Footprint>,
        networks: &[ipnet::IpNet],
    ) -> LeftOvers {
        let subnets = [Some(lease.subnet), self.requester.previous].into_iter().flatten();
        let mut links: Vec<_> =
            subnets.flat_map(|subnet| backend::left_devices(&self.underlay, &subnet)).collect();
        let mut networks = networks.to_vec();
        let previous = self.requester.previous.into_iter();
        let subnets = previous.flat_map(Subnet::nets).collect();
        // flannel uses only the main table.
        let mut tables = vec![MAIN_TABLE];
        if let Some(footprint) = footprint {
            links.extend(&footprint.devices);
            networks.extend(&footprint.networks);
            tables.extend(&footprint.tables);
        }
        links.sort_unstable();
        links.dedup();
        let firewall = footprint.is_none_or(|footprint| footprint.firewall);
        LeftOvers { links, networks, subnets, tables, writer: Writer::Flannel, firewall }
    }

    /// Returns the MAC of the uplink; all zeros if the link is gone.
    pub(crate) fn uplink_mac(&self) -> Mac {
        self.underlay.link(self.choice.uplink.link).map(|link| link.mac).unwrap_or_default()
    }
}

/// Chooses the interface that the flags ask for, from the node's present state. Returns an error if none fits.
pub(crate) fn choose_uplink(
    flags: &Flags,
    config: &Config,
    underlay: &Underlay,
    kernel: &mut Kernel,
    remembered: Vec<IpAddr>,
) -> anyhow::Result<UplinkChoice> {
    let outward = uplink::without_default(config, underlay).into_iter().map(|family| FAR[family as usize]);
    let outward = outward.map(|target| reach(kernel, target)).collect();
    let ask = Ask { remembered, outward, ..uplink_ask(flags, kernel) };
    uplink::choose(config, underlay, &ask).context("choosing the interface")
}

/// Returns true if `remembered` was written on this machine, by the uplink's MAC.
fn is_here(remembered: &CachedState, flags: &Flags, kernel: &mut Kernel) -> bool {
    Place::find(flags, &remembered.conf.config(), kernel, &own_addresses(remembered, flags))
        .is_ok_and(|place| place.uplink_mac() == remembered.uplink_mac)
}

/// Returns the addresses that the last run announced and that no flag had set.
fn own_addresses(remembered: &CachedState, flags: &Flags) -> Vec<IpAddr> {
    let is_own = |family: &Family| match family {
        Family::Ipv4 => flags.public_ip.is_none(),
        Family::Ipv6 => flags.public_ipv6.is_none(),
    };
    let own = remembered.own();
    let families = Family::ALL.into_iter().filter(is_own);
    families.filter_map(|family| own.as_ref()?.public(family)).collect()
}

fn joined(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" and ")
}

fn reach(kernel: &mut Kernel, target: IpAddr) -> Reach {
    let found = kernel.route_to(target).map_err(|error| error.to_string());
    Reach { target, exit: found.map(|found| Exit { link: found.route.link, source: found.source }) }
}

fn uplink_ask(flags: &Flags, kernel: &mut Kernel) -> Ask {
    Ask {
        ifaces: flags.iface.clone(),
        patterns: flags.iface_regex.clone(),
        can_reach: flags.iface_can_reach.map(|target| reach(kernel, target)),
        public_ip: flags.public_ip,
        public_ipv6: flags.public_ipv6,
        node_ips: flags.node_ips.clone(),
        ..Ask::default()
    }
}

/// Draws random bytes from the kernel, so that nodes that boot at the same instant draw different MACs.
fn draw<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| anyhow!("drawing random numbers: {error}"))?;
    Ok(bytes)
}

/// Repeats `attempt` until it succeeds, or until `instead` gives the value that an earlier run remembered. An error is
/// logged once, and again only when it changes.
fn until_done<T, E: Display>(
    report_sender: &ReportSender,
    begun: Instant,
    what: &str,
    mut attempt: impl FnMut() -> Result<T, E>,
    mut instead: impl FnMut() -> Option<T>,
) -> T {
    let mut logged = String::new();
    report::wait_for(report_sender, what);
    loop {
        notify::alive();
        let error = match attempt() {
            Ok(done) => return done,
            Err(error) => error.to_string(),
        };
        if error != logged {
            warn!("waiting for {what}: {error}");
            report::wait_for(report_sender, &format!("{what}: {error}"));
            logged = error;
        }
        if begun.elapsed() > STORE_TIMEOUT
            && let Some(remembered) = instead()
        {
            warn!("the store does not answer; going on with {what} from the leases cache");
            return remembered;
        }
        std::thread::sleep(RETRY);
    }
}
