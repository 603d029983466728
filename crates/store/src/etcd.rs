//! Leases in etcd, with flannel's keys and values (flannel-compat 4). The last known leases stay in force while no server
//! answers. `plan::shrink_guard` decides if a list is plausible.
//!
//! One server is used at a time, with a short timeout, not a balanced channel. flannel's default list names a port on which
//! nothing listens, and a balancer would hide which server refused what. A session is one connection.

mod acquire;
mod backoff;
mod der;
mod dial;
mod error_text;
mod listing;
mod session;
mod tls;

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use etcd_client::WatchResponse;
use futures_util::future::BoxFuture;
use plan::backend::Backend;
use plan::lease::Lease;
use plan::netconf::NetConf;
use plan::subnet::Subnet;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, sleep, sleep_until};
use tracing::{debug, info, warn};

use crate::bounds::Scope;
use crate::claim::Claim;
use crate::stats::ConnectionStats;
use crate::view::{StoreError, View};
use backoff::Backoff;
use listing::Listing;
use session::{HistoryCheck, Keys, Name, REQUEST_TIMEOUT, RequestError, Session, Stream};

/// Time after a change within which further changes are published together with it.
const PUBLISH_DELAY: Duration = Duration::from_millis(20);
/// Time without a message after which the server is probed.
const PROBE_AFTER: Duration = Duration::from_secs(3);
/// Time without a message after which a watch is restarted although its server answers. etcd sends a progress notification
/// every 10 minutes by default.
const WATCH_SILENCE: Duration = Duration::from_secs(25 * 60);
/// Time between two checks that this node still has the source address of the connection.
const SOURCE_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Minimum time between two ended connections that are replaced without a report.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Time until the next attempt after a failed renewal of our lease, whose TTL is much longer.
const RENEW_RETRY: Duration = Duration::from_secs(20);

/// Address of the etcd cluster and our credentials.
#[derive(Clone)]
pub struct EtcdOptions {
    /// URLs of the servers, e.g. `https://10.0.0.5:2379`. They are tried in this order, from a random one on.
    pub endpoints: Vec<String>,
    /// Prefix of all keys, e.g. `/coreos.com/network`.
    pub prefix: String,
    /// File of the trusted CA certificates, PEM; empty means the system's.
    pub cafile: PathBuf,
    /// File of the client certificate, PEM; empty means none.
    pub certfile: PathBuf,
    /// File of the client's private key, PEM; empty means none.
    pub keyfile: PathBuf,
    /// User name; empty means none.
    pub username: String,
    /// Password of the user; empty means none.
    pub password: String,
    /// Backend that replaces the one in the config.
    pub backend: Option<Backend>,
    /// Time before the end of our lease at which it is renewed.
    pub renew_margin: Duration,
}

impl EtcdOptions {
    /// Returns true if there is a user and a password. A user or password alone is ignored, as in flannel.
    fn has_user(&self) -> bool {
        !(self.username.is_empty() || self.password.is_empty())
    }
}

impl fmt::Debug for EtcdOptions {
    /// Formats the cluster without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd {} at {}", self.prefix, self.endpoints.join(","))
    }
}

/// An etcd cluster. Copies share their connection.
#[derive(Clone)]
pub struct Etcd {
    options: Arc<EtcdOptions>,
    keys: Keys,
    shared: Arc<Mutex<Shared>>,
    stats: Arc<ConnectionStats>,
}

#[derive(Default)]
struct Shared {
    session: Option<Session>,
    /// Number of the endpoint that is tried first, modulo the number of endpoints.
    first: usize,
    /// Listing that was read to take our lease; the watch begins with it.
    seed: Option<Listing>,
    /// Last part of our lease's key, e.g. `10.3.7.0-24`.
    own: Option<Box<str>>,
    /// Definition of a lease. The networks of the config in force do not change while the daemon runs.
    scope: Option<Scope>,
}

/// Reason for the end of a watch.
enum WatchEnd {
    /// The source address of the connection was removed from this node.
    SourceLost,
    /// There is no fault; the watch is restarted.
    Restart(&'static str),
    /// The server or a proxy ended the watch. Servers that stop and load balancers do so, and the next connection works.
    Ended(StoreError),
    /// The server failed or refused.
    Lost(StoreError),
}

impl From<StoreError> for WatchEnd {
    fn from(error: StoreError) -> Self {
        Self::Lost(error)
    }
}

/// Our etcd lease and the time of its renewal.
#[derive(Default)]
struct Renewal {
    /// Id of the etcd lease; 0 for a reservation, which has none and never ends.
    id: i64,
    /// Time of the next renewal.
    due: Option<Instant>,
    /// Time at which the lease ends; `None` until it was renewed once.
    until: Option<SystemTime>,
}

impl Etcd {
    /// Creates a store of this cluster without connecting to it.
    pub fn new(options: EtcdOptions) -> Self {
        let keys = Keys::new(&options.prefix);
        let first = backoff::random() as usize;
        let shared = Mutex::new(Shared { first, ..Shared::default() });
        Self { options: Arc::new(options), keys, shared: Arc::new(shared), stats: Arc::default() }
    }

    /// Returns a text that identifies the store, for messages and for the cache, e.g. `etcd /coreos.com/network`.
    pub fn identity(&self) -> String {
        // The text has no servers, since they may change; the cluster's id comes with its lists.
        format!("etcd {}", self.options.prefix)
    }

    /// Returns the counters about the connection.
    pub fn stats(&self) -> Arc<ConnectionStats> {
        self.stats.clone()
    }

    /// Reads all leases of the config's networks once.
    ///
    /// Returns an error if no server answers.
    pub async fn leases(&self, conf: &NetConf) -> Result<Arc<[Lease]>, StoreError> {
        let mut session = self.session().await?;
        let listed = session.list(&self.options, Some(Scope::of(conf))).await;
        self.disconnect_on_failure(&session, listed).map(|mut listing| listing.leases())
    }

    /// Reads the network config.
    ///
    /// Returns an error if no server answers, or if the config is missing or invalid.
    pub async fn net_conf(&self) -> Result<NetConf, StoreError> {
        let session = self.session().await?;
        let read = session.get(Name::Config).await;
        let (_, conf) = self.disconnect_on_failure(&session, read)?;
        let text = conf.as_ref().map(etcd_client::KeyValue::value);
        listing::net_conf(&self.keys, text, self.options.backend.as_ref())
            .map_err(|why| StoreError::new(&session.endpoint, why))
    }

    /// Writes our lease, unless it stands there already as it should. It uses compare-and-swap: if two nodes want the
    /// same subnet, the second one chooses again.
    ///
    /// Returns an error if no server answers or no acceptable subnet is available.
    pub async fn acquire(&self, claim: &Claim) -> Result<Lease, StoreError> {
        let mut session = self.session().await?;
        let taken = acquire::acquire(&mut session, &self.options, claim).await;
        let (lease, seed) = self.disconnect_on_failure(&session, taken)?;
        if seed.is_some() {
            self.lock().seed = seed;
        }
        Ok(lease)
    }

    /// Records that the lease of this subnet is ours to renew. The networks of this config define which entries are
    /// leases.
    pub fn set_own_lease(&self, subnet: &Subnet, conf: &NetConf) {
        let mut shared = self.lock();
        (shared.own, shared.scope) =
            (Some(subnet.to_string().into()), Some(Scope { own: Some(*subnet), ..Scope::of(conf) }));
    }

    /// Keeps the view up to date and our lease renewed, and never returns. While no server answers, the view keeps the last
    /// good leases.
    pub async fn watch(self, view: watch::Sender<View>) {
        let mut listing = self.lock().seed.take().unwrap_or_default();
        let (mut renewal, mut backoff) = (Renewal::default(), Backoff::default());
        let mut replaced: Option<Instant> = None;
        loop {
            let Err(end) = self.follow(&mut listing, &view, &mut renewal, &mut backoff).await;
            self.stats.count_restart();
            match end {
                WatchEnd::SourceLost => {
                    info!("the source address of the connection to etcd is gone; connecting again");
                }
                WatchEnd::Restart(why) => debug!("restarting the watch: {why}"),
                WatchEnd::Ended(error) if replaced.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) => {
                    debug!("connecting again: {error}");
                    replaced = Some(Instant::now());
                    sleep(backoff.next_pause()).await;
                }
                WatchEnd::Ended(error) | WatchEnd::Lost(error) => {
                    let why = error.to_string();
                    if view.borrow().lost.as_ref() != Some(&why) {
                        warn!("store is lost; the last known leases stay in force: {why}");
                        view.send_modify(|view| view.lost = Some(why));
                    }
                    sleep(backoff.next_pause()).await;
                }
            }
        }
    }

    /// Follows the store on one connection until the watch ends. Gives up a connection that failed or lost its source address.
    async fn follow(
        &self,
        listing: &mut Listing,
        view: &watch::Sender<View>,
        renewal: &mut Renewal,
        backoff: &mut Backoff,
    ) -> Result<Infallible, WatchEnd> {
        let session = self.session().await?;
        let end = self.run_watch(session.clone(), listing, view, renewal, backoff).await;
        end.inspect_err(|end| match end {
            WatchEnd::Restart(_) => {}
            WatchEnd::SourceLost => self.disconnect(&session, false),
            WatchEnd::Ended(_) | WatchEnd::Lost(_) => self.disconnect(&session, true),
        })
    }

    /// Runs the watch on a connection, with renewals, health checks and publications, until it ends.
    async fn run_watch(
        &self,
        mut session: Session,
        listing: &mut Listing,
        view: &watch::Sender<View>,
        renewal: &mut Renewal,
        backoff: &mut Backoff,
    ) -> Result<Infallible, WatchEnd> {
        let mut stream = self.start_watch(&mut session, listing).await?;
        // The remaining TTL is unknown after a suspended machine or an outage of the server.
        renewal.schedule_now();
        let mut health = HealthCheck::begin(session.clone());
        let mut publish: Option<Instant> = None;
        let mut source = tokio::time::interval(SOURCE_CHECK_INTERVAL);
        source.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let own = self.lock().own.clone();
            renewal.set_lease_id(own.and_then(|own| listing.lease_id(&own)));
            tokio::select! {
                message = stream.next() => {
                    let response = message.map_err(|error| match error {
                        Some(error) => WatchEnd::Ended(error),
                        None => {
                            listing.cluster = 0;
                            WatchEnd::Restart("an event is too large, so the list is read")
                        }
                    })?;
                    self.stats.record_message();
                    if self.apply(&response, listing, &session)? {
                        publish.get_or_insert(Instant::now() + PUBLISH_DELAY);
                    }
                    if health.record_message() {
                        backoff.reset();
                        publish = Some(Instant::now());
                    }
                }
                there = health.check() => {
                    there?;
                    self.stats.record_message();
                }
                _ = source.tick() => if !session.has_source() {
                    return Err(WatchEnd::SourceLost);
                },
                () = sleep_until_some(publish) => {
                    publish = None;
                    publish_view(listing, renewal.until, view);
                }
                () = sleep_until_some(renewal.due) => {
                    renewal.renew(&mut session, self.options.renew_margin).await;
                    // The end of our lease has changed, and the cache keeps it.
                    publish.get_or_insert(Instant::now());
                }
            }
        }
    }

    /// Brings the listing up to date and starts a watch from there.
    async fn start_watch(&self, session: &mut Session, listing: &mut Listing) -> Result<Stream, StoreError> {
        let history = session.check_history(listing).await?;
        if history != HistoryCheck::Same {
            let breaks = listing.breaks + u32::from(history == HistoryCheck::Different);
            let scope = self.lock().scope.clone();
            *listing = session.list(&self.options, scope).await?;
            listing.breaks = breaks;
            self.stats.count_list();
        }
        session.watch(listing.next()).await
    }

    /// Applies a message of the watch. Returns true if it changes anything.
    fn apply(
        &self,
        response: &WatchResponse,
        listing: &mut Listing,
        session: &Session,
    ) -> Result<bool, WatchEnd> {
        if response.canceled() {
            // The list has to be read again in any case.
            listing.cluster = 0;
            return Err(session.fault(error_text::ended(response)).into());
        }
        let mut changed = false;
        for event in response.events() {
            changed |= listing.apply(event, &self.keys, &self.options);
        }
        if listing.has_room_again() {
            listing.cluster = 0;
            return Err(WatchEnd::Restart("there is room again for leases that were left out"));
        }
        Ok(changed)
    }

    /// Returns the current connection, or a new one to the first server that answers.
    async fn session(&self) -> Result<Session, StoreError> {
        let (known, first) = {
            let shared = self.lock();
            (shared.session.clone(), shared.first)
        };
        if let Some(session) = known {
            if session.has_source() {
                return Ok(session);
            }
            self.disconnect(&session, false);
        }
        let count = self.options.endpoints.len();
        let mut faults = Vec::new();
        for index in (0..count).map(|nth| (first + nth) % count) {
            match Session::open(index, &self.keys, &self.options).await {
                Ok(session) => {
                    let mut shared = self.lock();
                    (shared.session, shared.first) = (Some(session.clone()), index);
                    return Ok(session);
                }
                Err(fault) => faults.push(fault.to_string()),
            }
        }
        Err(StoreError::new("etcd", faults.join("; ")))
    }

    /// Passes the result on, and gives the connection up if it failed. The next connection goes to another server.
    fn disconnect_on_failure<T>(
        &self,
        session: &Session,
        result: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        result.inspect_err(|error| {
            if !error.is_answer() {
                self.disconnect(session, true);
            }
        })
    }

    /// Gives a connection up. If it has `failed`, the next one goes to another server.
    fn disconnect(&self, session: &Session, failed: bool) {
        let mut shared = self.lock();
        if shared.session.as_ref().is_some_and(|current| current.is_same(session)) {
            shared.session = None;
            shared.first = session.index + usize::from(failed);
        }
        drop(shared);
        if !failed {
            session.shut_down();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Renewal {
    /// Takes the id of our etcd lease. A new one is renewed at once, which also yields its TTL.
    fn set_lease_id(&mut self, id: Option<i64>) {
        let id = id.unwrap_or_default();
        if self.id != id {
            *self = Self { id, ..Self::default() };
            self.schedule_now();
        }
    }

    /// Schedules a renewal for now, if there is an etcd lease.
    fn schedule_now(&mut self) {
        self.due = (self.id != 0).then(Instant::now);
    }

    /// Renews the lease by a keep-alive, which writes no key and so causes no event. An expired lease takes its key along, and
    /// the watch reports that.
    async fn renew(&mut self, session: &mut Session, margin: Duration) {
        let pause = match session.keep_alive(self.id).await {
            Ok(lasts) if !lasts.is_zero() => {
                self.until = Some(SystemTime::now() + lasts);
                // The pause stays positive for a TTL shorter than the margin.
                lasts.saturating_sub(margin).max(lasts / 3)
            }
            Ok(_) => RENEW_RETRY,
            Err(why) => {
                debug!("our lease could not be renewed; retrying: {why}");
                RENEW_RETRY
            }
        };
        self.due = Some(Instant::now() + backoff::jittered(pause));
    }
}

/// Health check of a silent server.
struct HealthCheck {
    session: Session,
    /// True once the server has confirmed the watch.
    is_confirmed: bool,
    /// Time of the last message of the watch.
    watch: Instant,
    /// Time of the last message of the server.
    server: Instant,
    /// Probe that is waiting for its reply.
    pending_probe: Option<BoxFuture<'static, Result<(), RequestError>>>,
}

impl HealthCheck {
    fn begin(session: Session) -> Self {
        let now = Instant::now();
        Self { session, is_confirmed: false, watch: now, server: now, pending_probe: None }
    }

    /// Records a message of the watch. Returns true for the first one.
    fn record_message(&mut self) -> bool {
        (self.watch, self.server, self.pending_probe) = (Instant::now(), Instant::now(), None);
        !std::mem::replace(&mut self.is_confirmed, true)
    }

    /// Waits until the server has been silent for [`PROBE_AFTER`], then probes it with a read of one key. Every etcd and
    /// every proxy forwards that. No proxy answers a progress request on the watch, and some end by it. The future
    /// may be dropped and the method called again.
    async fn check(&mut self) -> Result<(), WatchEnd> {
        if !self.is_confirmed {
            sleep_until(self.server + REQUEST_TIMEOUT).await;
            return Err(self.session.timeout_error(REQUEST_TIMEOUT).into());
        }
        if self.pending_probe.is_none() {
            sleep_until(self.server + PROBE_AFTER).await;
        }
        let session = self.session.clone();
        let pending_probe =
            self.pending_probe.get_or_insert_with(|| Box::pin(async move { session.ping().await }));
        let answer = pending_probe.await;
        self.pending_probe = None;
        answer.map_err(|refusal| self.session.fault(refusal.why))?;
        self.server = Instant::now();
        if self.watch.elapsed() > WATCH_SILENCE {
            return Err(WatchEnd::Restart("it has sent nothing for too long"));
        }
        Ok(())
    }
}

/// Waits until this time, or for ever if there is none.
async fn sleep_until_some(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Publishes the listing in the view, if it differs.
fn publish_view(listing: &mut Listing, until: Option<SystemTime>, view: &watch::Sender<View>) {
    if view.borrow().lost.is_some() {
        info!("store is back");
    }
    let new = View { own_until: until, ..listing.view() };
    view.send_if_modified(|view| {
        let differs = *view != new;
        if differs {
            *view = new;
        }
        differs
    });
}
