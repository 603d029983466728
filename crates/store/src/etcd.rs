//! Leases in etcd, in flannel's keys and words (flannel-compat 4). It asks one server at a time and gives none of them long
//! to answer; what it heard stays in force while nobody does. Whether a list is to be believed is not decided here.

mod claim;
mod der;
mod dial;
mod listing;
mod pace;
mod session;
mod tls;
mod words;

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use etcd_client::WatchResponse;
use futures_util::future::BoxFuture;
use plan::backend::Backend;
use plan::lease::{Lease, Subnet};
use plan::netconf::NetConf;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, sleep, sleep_until};
use tracing::{debug, info, warn};

use crate::own::Claim;
use crate::pulse::Pulse;
use crate::view::{StoreError, View};
use listing::{Listing, Scope};
use pace::Pace;
use session::{ANSWER, Keys, Name, Refusal, Session, Since, Stream};

/// Changes in quick succession are told together.
const QUIET: Duration = Duration::from_millis(20);
/// Time without a word after which a server is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(3);
/// Time without a word after which a watch is begun again, though its server is there: etcd says every 10 minutes how far
/// it is, unless it is told otherwise.
const DEAF: Duration = Duration::from_secs(25 * 60);
/// Time between two looks at whether this node still has the address that the connection comes from.
const SOURCE: Duration = Duration::from_millis(250);

/// Until a lease that could not be renewed is renewed; it lasts much longer.
const RENEW_RETRY: Duration = Duration::from_secs(20);

/// Where etcd is, and who asks.
#[derive(Clone)]
pub struct EtcdOptions {
    /// URLs, in the order in which they are tried.
    pub endpoints: Vec<String>,
    /// What all keys begin with.
    pub prefix: String,
    /// PEM; empty means the system's.
    pub cafile: PathBuf,
    /// The client's own certificate and key, PEM; empty means none.
    pub certfile: PathBuf,
    pub keyfile: PathBuf,
    /// Empty means none.
    pub username: String,
    pub password: String,
    /// Goes before what the config names.
    pub backend: Option<Backend>,
    /// How long before its end our lease is renewed.
    pub renew_margin: Duration,
}

impl EtcdOptions {
    /// As with flannel, one without the other is none.
    fn has_user(&self) -> bool {
        !(self.username.is_empty() || self.password.is_empty())
    }
}

impl fmt::Debug for EtcdOptions {
    /// Without the password.
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
    pulse: Arc<Pulse>,
}

#[derive(Default)]
struct Shared {
    session: Option<Session>,
    /// Which endpoint is tried first.
    first: usize,
    /// The list that our lease was taken by.
    seed: Option<Listing>,
    /// The last part of our lease's key.
    own: Option<Box<str>>,
    /// What counts as a lease; the networks of the config in force do not change while we run.
    scope: Option<Scope>,
}

/// Why a watch ends.
enum End {
    /// This node has lost the address that the connection came from.
    Moved,
    /// All is well, and it is begun again.
    Again(&'static str),
    Lost(StoreError),
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        Self::Lost(error)
    }
}

/// Our etcd lease, and when it is to be renewed.
#[derive(Default)]
struct Renewal {
    /// 0: a reservation, which has none and never ends.
    id: i64,
    due: Option<Instant>,
    until: Option<SystemTime>,
}

impl Etcd {
    /// Names the cluster; nobody is asked yet.
    pub fn new(options: EtcdOptions) -> Self {
        let keys = Keys::new(&options.prefix);
        let first = pace::dice() as usize;
        let shared = Mutex::new(Shared { first, ..Shared::default() });
        Self { options: Arc::new(options), keys, shared: Arc::new(shared), pulse: Arc::default() }
    }

    /// Tells this store from others, for people and for a cache.
    pub fn identity(&self) -> String {
        // Servers come and go; which cluster it is, its lists say.
        format!("etcd {}", self.options.prefix)
    }

    /// How it is heard.
    pub fn pulse(&self) -> Arc<Pulse> {
        self.pulse.clone()
    }

    /// Reads all leases, once.
    pub async fn leases(&self) -> Result<Vec<Lease>, StoreError> {
        let mut session = self.session().await?;
        let listed = session.list(&self.options, None).await;
        Ok(self.keep_if_well(&session, listed)?.leases())
    }

    /// Reads the network config.
    pub async fn net_conf(&self) -> Result<NetConf, StoreError> {
        let session = self.session().await?;
        let read = session.get(Name::Config).await;
        let (_, conf) = self.keep_if_well(&session, read)?;
        let text = conf.as_ref().map(etcd_client::KeyValue::value);
        listing::net_conf(&self.keys, text, self.options.backend.as_ref())
            .map_err(|why| StoreError::new(&session.endpoint, why))
    }

    /// Takes our lease: compared and swapped, so that of two who want the same subnet one gets it and the other chooses
    /// anew. Writes nothing when the lease stands as it should.
    pub async fn acquire(&self, claim: &Claim) -> Result<Lease, StoreError> {
        let mut session = self.session().await?;
        let taken = claim::take(&mut session, &self.options, claim).await;
        let (lease, seed) = self.keep_if_well(&session, taken)?;
        if seed.is_some() {
            self.lock().seed = seed;
        }
        Ok(lease)
    }

    /// From now on that lease is ours to renew, whether it was taken or remembered, and leases are of that config's
    /// networks.
    pub fn hold(&self, subnet: &Subnet, conf: &NetConf) {
        let mut shared = self.lock();
        (shared.own, shared.scope) =
            (Some(subnet.to_string().into()), Some(Scope { conf: conf.clone(), owner: None }));
    }

    /// Keeps the view up to date and our lease renewed, for ever. While nobody answers the last good leases stay in it.
    pub async fn watch(self, view: watch::Sender<View>) {
        let mut listing = self.lock().seed.take().unwrap_or_default();
        let (mut renewal, mut pace) = (Renewal::default(), Pace::default());
        loop {
            let Err(end) = self.follow(&mut listing, &view, &mut renewal, &mut pace).await;
            self.pulse.count_restart();
            match end {
                End::Moved => info!("the source address of the connection to etcd is gone; connecting again"),
                End::Again(why) => debug!("the watch is begun again: {why}"),
                End::Lost(error) => {
                    let why = error.to_string();
                    if view.borrow().lost.as_ref() != Some(&why) {
                        warn!("store is lost, the last known leases stay in force: {why}");
                        view.send_modify(|view| view.lost = Some(why));
                    }
                    sleep(pace.next()).await;
                }
            }
        }
    }

    async fn follow(
        &self,
        listing: &mut Listing,
        view: &watch::Sender<View>,
        renewal: &mut Renewal,
        pace: &mut Pace,
    ) -> Result<Infallible, End> {
        let session = self.session().await?;
        let end = self.hear(session.clone(), listing, view, renewal, pace).await;
        end.inspect_err(|end| match end {
            End::Again(_) => {}
            End::Moved => self.leave(&session, false),
            End::Lost(_) => self.leave(&session, true),
        })
    }

    async fn hear(
        &self,
        mut session: Session,
        listing: &mut Listing,
        view: &watch::Sender<View>,
        renewal: &mut Renewal,
        pace: &mut Pace,
    ) -> Result<Infallible, End> {
        let mut stream = self.begin(&mut session, listing).await?;
        // Nobody knows how long it lasts after a clock that stood still or a server that was away.
        renewal.begin();
        let mut silence = Silence::begin(session.clone());
        let mut publish: Option<Instant> = None;
        let mut source = tokio::time::interval(SOURCE);
        source.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let own = self.lock().own.clone();
            renewal.look_at(own.and_then(|own| listing.lease_id(&own)));
            tokio::select! {
                message = stream.next() => {
                    let response = message.map_err(|error| match error {
                        Some(error) => End::Lost(error),
                        None => {
                            listing.cluster = 0;
                            End::Again("an event is too large, so the list is read")
                        }
                    })?;
                    self.pulse.beat();
                    if self.heed(&response, listing, &session)? {
                        publish.get_or_insert(Instant::now() + QUIET);
                    }
                    if silence.hear() {
                        pace.reset();
                        publish = Some(Instant::now());
                    }
                }
                there = silence.pass() => {
                    there?;
                    self.pulse.beat();
                }
                _ = source.tick() => if !session.has_source() {
                    return Err(End::Moved);
                },
                () = at(publish) => {
                    publish = None;
                    tell(listing, renewal.until, view);
                }
                () = at(renewal.due) => {
                    renewal.renew(&mut session, self.options.renew_margin).await;
                    // For whoever remembers how long our lease is good for.
                    publish.get_or_insert(Instant::now());
                }
            }
        }
    }

    /// Brings the listing up to date and begins a watch from there.
    async fn begin(&self, session: &mut Session, listing: &mut Listing) -> Result<Stream, StoreError> {
        let since = session.since(listing).await?;
        if since != Since::Same {
            let breaks = listing.breaks + u32::from(since == Since::Another);
            let scope = self.lock().scope.clone();
            *listing = session.list(&self.options, scope).await?;
            listing.breaks = breaks;
            self.pulse.count_list();
        }
        session.watch(listing.next()).await
    }

    /// Takes what the watch tells. True when it is something new.
    fn heed(&self, response: &WatchResponse, listing: &mut Listing, session: &Session) -> Result<bool, End> {
        if response.canceled() {
            // Whatever the reason is, the list is to be read anew.
            listing.cluster = 0;
            return Err(session.fault(words::ended(response)).into());
        }
        let mut changed = false;
        for event in response.events() {
            changed |= listing.heed(event, &self.keys, &self.options);
        }
        if listing.has_room_again() {
            listing.cluster = 0;
            return Err(End::Again("there is room again for leases that were left out"));
        }
        Ok(changed)
    }

    /// The connection that there is, or a new one to the first server that answers.
    async fn session(&self) -> Result<Session, StoreError> {
        let (known, first) = {
            let shared = self.lock();
            (shared.session.clone(), shared.first)
        };
        if let Some(session) = known {
            if session.has_source() {
                return Ok(session);
            }
            self.leave(&session, false);
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

    /// A connection on which something failed is not used again, and the next one goes to another server.
    fn keep_if_well<T>(&self, session: &Session, result: Result<T, StoreError>) -> Result<T, StoreError> {
        result.inspect_err(|error| {
            if !error.is_decision() {
                self.leave(session, true);
            }
        })
    }

    /// Gives a connection up, and with it the server, if that has `failed`.
    fn leave(&self, session: &Session, failed: bool) {
        let mut shared = self.lock();
        if shared.session.as_ref().is_some_and(|current| current.is(session)) {
            shared.session = None;
            shared.first = session.index + usize::from(failed);
        }
        drop(shared);
        if !failed {
            session.cut();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Renewal {
    /// A lease that is new to us is renewed at once, which also tells how long it lasts.
    fn look_at(&mut self, id: Option<i64>) {
        let id = id.unwrap_or_default();
        if self.id != id {
            *self = Self { id, ..Self::default() };
            self.begin();
        }
    }

    fn begin(&mut self) {
        self.due = (self.id != 0).then(Instant::now);
    }

    /// Keeps it alive without a write, so that nobody hears of it. One that is over goes with its key, and that is heard.
    async fn renew(&mut self, session: &mut Session, margin: Duration) {
        let pause = match session.keep_alive(self.id).await {
            Ok(lasts) if !lasts.is_zero() => {
                self.until = Some(SystemTime::now() + lasts);
                // One that is shorter than the margin is no reason to ask without a pause.
                lasts.saturating_sub(margin).max(lasts / 3)
            }
            Ok(_) => RENEW_RETRY,
            Err(why) => {
                debug!("our lease is not renewed, which is tried again: {why}");
                RENEW_RETRY
            }
        };
        self.due = Some(Instant::now() + pace::jittered(pause));
    }
}

/// Watches over a silent server.
struct Silence {
    session: Session,
    /// Until the server has said that the watch stands.
    is_settled: bool,
    /// When the watch last said anything, and when the server did.
    watch: Instant,
    server: Instant,
    /// A question that is under way.
    asked: Option<BoxFuture<'static, Result<(), Refusal>>>,
}

impl Silence {
    fn begin(session: Session) -> Self {
        let now = Instant::now();
        Self { session, is_settled: false, watch: now, server: now, asked: None }
    }

    /// The watch says something. True for the first word.
    fn hear(&mut self) -> bool {
        (self.watch, self.server, self.asked) = (Instant::now(), Instant::now(), None);
        !std::mem::replace(&mut self.is_settled, true)
    }

    /// Waits while the server is silent and may be, then asks it whether it is there. The question is one that every etcd
    /// and every proxy passes on; to ask on the watch itself is answered by none of the proxies, and ends some of them. May
    /// be dropped and called again.
    async fn pass(&mut self) -> Result<(), End> {
        if !self.is_settled {
            sleep_until(self.server + ANSWER).await;
            return Err(self.session.silent(ANSWER).into());
        }
        if self.asked.is_none() {
            sleep_until(self.server + SILENCE).await;
        }
        let session = self.session.clone();
        let asked = self.asked.get_or_insert_with(|| Box::pin(async move { session.is_there().await }));
        let answer = asked.await;
        self.asked = None;
        answer.map_err(|refusal| self.session.fault(refusal.why))?;
        self.server = Instant::now();
        if self.watch.elapsed() > DEAF {
            return Err(End::Again("it has said nothing for long"));
        }
        Ok(())
    }
}

/// Never, where there is no such time.
async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

fn tell(listing: &Listing, until: Option<SystemTime>, view: &watch::Sender<View>) {
    if view.borrow().lost.is_some() {
        info!("store is back");
    }
    let new = View { own_until: until, ..listing.view() };
    view.send_if_modified(|view| {
        let differs = *view != new;
        *view = new;
        differs
    });
}
