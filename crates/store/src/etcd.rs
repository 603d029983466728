//! Leases in etcd, in flannel's keys and words (flannel-compat 4). It asks one server at a time and gives none of them long
//! to answer; what it heard stays in force while nobody does. Whether a list is to be believed is not decided here.

mod claim;
mod listing;
mod pace;
mod session;
mod words;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use etcd_client::WatchResponse;
use plan::backend::Backend;
use plan::lease::{Lease, Subnet};
use plan::netconf::NetConf;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::own::Claim;
use crate::pulse::Pulse;
use crate::view::{StoreError, View};
use listing::Listing;
use pace::Pace;
use session::{ANSWER, Keys, Name, Session, Since};

/// Changes in quick succession are told together.
const QUIET: Duration = Duration::from_millis(20);
/// After so long without a word a server is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(3);

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
        Ok(self.keep_if_well(session.list(&self.options).await)?.leases())
    }

    /// Reads the network config.
    pub async fn net_conf(&self) -> Result<NetConf, StoreError> {
        let session = self.session().await?;
        let (_, conf) = self.keep_if_well(session.get(Name::Config).await)?;
        let text = conf.as_ref().map(etcd_client::KeyValue::value);
        listing::net_conf(&self.keys, text, self.options.backend.as_ref())
            .map_err(|why| StoreError::new(&session.endpoint, why))
    }

    /// Takes our lease: compared and swapped, so that of two who want the same subnet one gets it and the other chooses
    /// anew. Writes nothing when the lease stands as it should.
    pub async fn acquire(&self, claim: &Claim) -> Result<Lease, StoreError> {
        let mut session = self.session().await?;
        let taken = claim::take(&mut session, &self.options, claim).await;
        let (lease, seed) = self.keep_if_well(taken)?;
        if seed.is_some() {
            self.lock().seed = seed;
        }
        Ok(lease)
    }

    /// From now on that lease is ours to renew, whether it was taken or remembered.
    pub fn hold(&self, subnet: &Subnet) {
        self.lock().own = Some(subnet.to_string().into());
    }

    /// Keeps the view up to date and our lease renewed, for ever. While nobody answers the last good leases stay in it.
    pub async fn watch(self, view: watch::Sender<View>) {
        let mut listing = self.lock().seed.take().unwrap_or_default();
        let (mut renewal, mut pace) = (Renewal::default(), Pace::default());
        loop {
            let Err(error) = self.follow(&mut listing, &view, (&mut renewal, &mut pace)).await;
            self.lock().session = None;
            self.pulse.count_restart();
            let why = error.to_string();
            if view.borrow().lost.as_ref() != Some(&why) {
                warn!("store is lost, the last known leases stay in force: {why}");
                view.send_modify(|view| view.lost = Some(why));
            }
            sleep(pace.next()).await;
        }
    }

    async fn follow(
        &self,
        listing: &mut Listing,
        view: &watch::Sender<View>,
        (renewal, pace): (&mut Renewal, &mut Pace),
    ) -> Result<std::convert::Infallible, StoreError> {
        let mut session = self.session().await?;
        let since = session.since(listing).await?;
        if since != Since::Same {
            let breaks = listing.breaks + u32::from(since == Since::Another);
            *listing = session.list(&self.options).await?;
            listing.breaks = breaks;
            self.pulse.count_list();
        }
        let mut stream = session.watch(listing.revision).await?;
        // Nobody knows how long it lasts after a clock that stood still or a server that was away.
        renewal.begin();
        // Until the server has said that it stands.
        let mut unsettled = true;
        let mut publish: Option<Instant> = None;
        let mut asked = false;
        loop {
            let own = self.lock().own.clone();
            renewal.look_at(own.and_then(|own| listing.lease_id(&own)));
            let patience = if asked || unsettled { ANSWER } else { SILENCE };
            tokio::select! {
                message = timeout(patience, stream.next()) => match message {
                    Ok(message) => {
                        let response = message?;
                        asked = false;
                        self.pulse.beat();
                        if self.heed(&response, listing, &session)? {
                            publish.get_or_insert(Instant::now() + QUIET);
                        }
                        if std::mem::take(&mut unsettled) {
                            pace.reset();
                            publish = Some(Instant::now());
                        }
                    }
                    Err(_) if asked || unsettled => return Err(session.silent(patience)),
                    Err(_) => {
                        stream.ask().await?;
                        asked = true;
                    }
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

    /// Takes what the watch tells. True when it is something new.
    fn heed(
        &self,
        response: &WatchResponse,
        listing: &mut Listing,
        session: &Session,
    ) -> Result<bool, StoreError> {
        if response.canceled() {
            // Whatever the reason is, the list is to be read anew.
            listing.cluster = 0;
            return Err(session.fault(words::ended(response)));
        }
        let mut changed = false;
        for event in response.events() {
            changed |= listing.heed(event, &self.keys, &self.options);
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
            return Ok(session);
        }
        let count = self.options.endpoints.len();
        let mut faults = Vec::new();
        for index in (0..count).map(|nth| (first + nth) % count) {
            let endpoint = &self.options.endpoints[index];
            match Session::open(endpoint, &self.keys, &self.options).await {
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

    /// A connection on which something failed is not used again.
    fn keep_if_well<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        result.inspect_err(|error| {
            if !error.is_decision() {
                self.lock().session = None;
            }
        })
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
