//! Session with one etcd server: one connection, and the requests on it, each with a timeout. The callers interpret the replies.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, Error, GetOptions, KeyValue, PutOptions, Txn, TxnOp,
    WatchOptions, WatchResponse, WatchStream,
};
use tokio::time::timeout;

use super::dial::{self, Connection, Failure, timeout_text};
use super::listing::Listing;
use super::{EtcdOptions, error_text};
use crate::bounds::Scope;
use crate::view::StoreError;

/// Timeout of a request.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_millis(1500);
/// Timeout for one page of a list, which delays nothing but the list.
const PAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a login.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of entries in one page.
const PAGE_ENTRIES: i64 = 1000;
/// Maximum size of a reply in bytes: two entries of etcd's usual limit. A larger page is read in smaller ones.
const MAX_REPLY_BYTES: usize = 4 << 20;
/// Maximum TTL of a lease; a longer one reported by a server is cut to it.
const MAX_TTL: Duration = Duration::from_secs(365 * 86400);
/// Maximum number of bytes of a key that is reported.
const MAX_KEY_BYTES: usize = 100;
/// TTL of a lease in seconds, as in flannel (flannel-compat 4.4).
const TTL: i64 = 86400;

/// Keys of the config and of the leases, e.g. `/coreos.com/network/config` and `/coreos.com/network/subnets/10.3.7.0-24`.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

/// Name of one of our keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name<'a> {
    Config,
    /// Lease, by the last part of its key.
    Subnet(&'a str),
}

impl Keys {
    /// Creates the keys below a prefix. Doubled and trailing slashes are ignored, as in flannel (flannel-compat 4.2).
    pub(super) fn new(prefix: &str) -> Self {
        let parts = prefix.split('/').filter(|part| !part.is_empty() && *part != ".");
        let path: String = parts.map(|part| format!("/{part}")).collect();
        let is_rooted = prefix.is_empty() || prefix.starts_with('/');
        Self { prefix: path[usize::from(!is_rooted)..].to_owned() }
    }

    pub(super) fn config(&self) -> String {
        format!("{}/config", self.prefix)
    }

    pub(super) fn subnet(&self, key: &str) -> String {
        format!("{}/subnets/{key}", self.prefix)
    }

    pub(super) fn key(&self, name: Name) -> String {
        match name {
            Name::Config => self.config(),
            Name::Subnet(key) => self.subnet(key),
        }
    }

    /// Returns the name of a key, or `None` if the key is not ours.
    pub(super) fn name<'a>(&self, key: &'a [u8]) -> Option<Name<'a>> {
        match key.strip_prefix(self.prefix.as_bytes())? {
            b"/config" => Some(Name::Config),
            rest => match str::from_utf8(rest.strip_prefix(b"/subnets/")?) {
                // A longer key is not a lease, and messages show only its beginning.
                Ok(key) => Some(Name::Subnet(&key[..key.floor_char_boundary(MAX_KEY_BYTES)])),
                Err(_) => Some(Name::Subnet("(not UTF-8)")),
            },
        }
    }

    /// Returns start and end of the range from the config to the last lease.
    fn all(&self) -> (String, String) {
        (self.config(), format!("{}/subnets0", self.prefix))
    }
}

/// A connection to one server. Copies share it.
#[derive(Clone)]
pub(super) struct Session {
    client: Client,
    connection: Arc<Connection>,
    /// Position of the endpoint in the options.
    pub(super) index: usize,
    pub(super) endpoint: String,
    pub(super) keys: Keys,
}

/// Relation of a server's history to that of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HistoryCheck {
    /// The history continues, so a watch reports all changes since.
    Same,
    /// The server has compacted that part of the history, or the listing has none.
    Unknown,
    /// The history is a different one, as after a restore.
    Different,
}

/// Transaction that writes a lease under a condition.
pub(super) struct Swap<'a> {
    pub(super) key: &'a str,
    pub(super) value: String,
    /// Revision of the entry to replace; `None` if the key must not exist.
    pub(super) replaced: Option<i64>,
    /// Entries to delete in the same transaction, and their revisions.
    pub(super) gone: Vec<(String, i64)>,
    /// Id of the etcd lease for a new entry.
    pub(super) lease_id: i64,
}

impl Session {
    /// Connects to the server with this index, and logs in if there is a user.
    ///
    /// Returns an error with the endpoint and, if possible, advice.
    pub(super) async fn open(index: usize, keys: &Keys, options: &EtcdOptions) -> Result<Self, StoreError> {
        let endpoint = options.endpoints[index].as_str();
        match Self::connect(index, keys, options).await {
            // A server that did not answer would not answer the diagnosis either.
            Err(RequestError { why, timed_out: false, .. }) => {
                Err(StoreError::new(endpoint, dial::diagnose(endpoint, options, why).await))
            }
            Err(RequestError { why, .. }) => Err(StoreError::new(endpoint, why)),
            Ok(session) => Ok(session),
        }
    }

    async fn connect(index: usize, keys: &Keys, options: &EtcdOptions) -> Result<Self, RequestError> {
        let endpoint = options.endpoints[index].clone();
        let dialed = dial::dial(&endpoint, options, REQUEST_TIMEOUT).await;
        let (channel, connection) = dialed
            .map_err(|Failure { why, timed_out }| RequestError { timed_out, ..RequestError::new(why) })?;
        let connect =
            |connect| with_timeout(LOGIN_TIMEOUT, Client::from_channel(channel.clone(), Some(connect)));
        let plain = ConnectOptions::new().with_require_leader(true);
        let client = if options.has_user() {
            let user = plain.clone().with_user(&options.username, &options.password);
            // Password hashes are slow by design, and after a restart all nodes log in at once.
            match connect(user.with_auto_token_refresh(true)).await {
                // An etcd without authentication admits everybody. Go's client ignores this error, too.
                Err(refusal) if refusal.why.contains("authentication is not enabled") => {
                    connect(plain).await?
                }
                client => client?,
            }
        } else {
            connect(plain).await?
        };
        let session = Self { client, connection, index, endpoint, keys: keys.clone() };
        session.ping().await?;
        Ok(session)
    }

    /// Returns true if both are the same connection.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.connection, &other.connection)
    }

    /// Returns false if this node has lost the connection's source address.
    pub(super) fn has_source(&self) -> bool {
        self.connection.has_source()
    }

    /// Shuts the connection down, so that every pending request fails.
    pub(super) fn shut_down(&self) {
        self.connection.shut_down();
    }

    /// Probes the server with the smallest possible read. A reply shows that the server and most of its cluster work.
    /// No proxy answers this read by itself.
    pub(super) async fn ping(&self) -> Result<(), RequestError> {
        let count = GetOptions::new().with_count_only();
        with_timeout(REQUEST_TIMEOUT, self.client.kv_client().get(self.keys.config(), Some(count)))
            .await
            .map(drop)
    }

    /// Returns an error with this server's endpoint.
    pub(super) fn fault(&self, why: impl std::fmt::Display) -> StoreError {
        StoreError::new(&self.endpoint, why)
    }

    /// Returns the error of a server that did not answer within this time.
    pub(super) fn timeout_error(&self, patience: Duration) -> StoreError {
        self.fault(timeout_text(patience))
    }

    async fn request<T>(&self, request: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
        with_timeout(REQUEST_TIMEOUT, request).await.map_err(|refusal| self.fault(refusal.why))
    }

    /// Returns the cluster's id and revision, and the entry of this name. A lease that is too large comes without its value.
    pub(super) async fn get(&self, name: Name<'_>) -> Result<((u64, i64), Option<KeyValue>), StoreError> {
        let mut kv = self.client.kv_client().max_decoding_message_size(MAX_REPLY_BYTES);
        let key = self.keys.key(name);
        let mut response = match with_timeout(REQUEST_TIMEOUT, kv.get(key.clone(), None)).await {
            Err(RequestError { is_too_large: true, .. }) if name != Name::Config => {
                self.request(kv.get(key, Some(GetOptions::new().with_keys_only()))).await?
            }
            response => response.map_err(|refusal| self.fault(refusal.why))?,
        };
        let at = response.header().map_or((0, 0), |header| (header.cluster_id(), header.revision()));
        Ok((at, response.take_kvs().pop()))
    }

    /// Reads all entries at one revision, page by page. A page that is too large is read in smaller ones. An entry that is too
    /// large by itself is listed without its value.
    pub(super) async fn list(
        &mut self,
        options: &EtcdOptions,
        scope: Option<Scope>,
    ) -> Result<Listing, StoreError> {
        let (start, end) = self.keys.all();
        let (mut from, mut limit) = (start.into_bytes(), PAGE_ENTRIES);
        let mut kv = self.client.kv_client().max_decoding_message_size(MAX_REPLY_BYTES);
        let mut listing = Listing::new(&self.keys, scope);
        loop {
            let page = GetOptions::new().with_range(end.as_str()).with_revision(listing.revision);
            let keys_only = limit == 0;
            let page = if keys_only { page.with_limit(1).with_keys_only() } else { page.with_limit(limit) };
            let response = match with_timeout(PAGE_TIMEOUT, kv.get(from.clone(), Some(page))).await {
                Err(RequestError { is_too_large: true, .. }) if limit > 0 => {
                    limit /= 2;
                    continue;
                }
                response => response.map_err(|refusal| self.fault(refusal.why))?,
            };
            let header = response.header().ok_or_else(|| self.fault("an answer without a header"))?;
            if listing.revision == 0 {
                (listing.cluster, listing.revision) = (header.cluster_id(), header.revision());
            }
            for kv in response.kvs() {
                if keys_only {
                    listing.put_oversized(kv, &self.keys, MAX_REPLY_BYTES);
                } else {
                    listing.put(kv, true, &self.keys, options);
                }
            }
            match response.kvs().last() {
                Some(last) if response.more() => {
                    // Appending a zero byte gives the next possible key.
                    from = last.key().to_vec();
                    from.push(0);
                }
                _ => return Ok(listing),
            }
            limit = (limit * 2).clamp(1, PAGE_ENTRIES);
        }
    }

    /// Compares the cluster's history with the listing's. A restored or emptied cluster may have the same id and an even higher
    /// revision. But the listing's newest key does not have the recorded revision there.
    pub(super) async fn check_history(&self, listing: &Listing) -> Result<HistoryCheck, StoreError> {
        let Some((name, written)) = listing.newest().filter(|_| listing.cluster != 0) else {
            return Ok(HistoryCheck::Unknown);
        };
        let mut kv = self.client.kv_client();
        let then = GetOptions::new().with_revision(listing.revision).with_keys_only();
        match with_timeout(REQUEST_TIMEOUT, kv.get(self.keys.key(name), Some(then))).await {
            Ok(response) => {
                let same = response.header().is_some_and(|header| header.cluster_id() == listing.cluster);
                let stood = response.kvs().first().is_some_and(|kv| kv.mod_revision() == written);
                Ok(if same && stood { HistoryCheck::Same } else { HistoryCheck::Different })
            }
            Err(refusal) if refusal.why.contains("has been compacted") => Ok(HistoryCheck::Unknown),
            Err(refusal) if refusal.why.contains("is a future revision") => Ok(HistoryCheck::Different),
            Err(refusal) => Err(self.fault(refusal.why)),
        }
    }

    /// Starts a watch of all our keys from this revision on.
    pub(super) async fn watch(&mut self, from: i64) -> Result<Stream, StoreError> {
        let (start, end) = self.keys.all();
        let options = WatchOptions::new()
            .with_range(end)
            .with_start_revision(from)
            .with_fragment()
            .with_progress_notify();
        let mut client = self.client.watch_client().max_decoding_message_size(MAX_REPLY_BYTES);
        let stream = self.request(client.watch(start, Some(options))).await?;
        Ok(Stream { stream, endpoint: self.endpoint.clone() })
    }

    /// Writes the lease if its conditions hold. Returns false if another node was faster.
    pub(super) async fn swap(&mut self, swap: Swap<'_>) -> Result<bool, StoreError> {
        let key = self.keys.subnet(swap.key);
        let (own, put) = match swap.replaced {
            Some(revision) => (
                Compare::mod_revision(key.as_str(), CompareOp::Equal, revision),
                PutOptions::new().with_ignore_lease(),
            ),
            None => (
                Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
                PutOptions::new().with_lease(swap.lease_id),
            ),
        };
        let (mut when, mut then) = (vec![own], vec![TxnOp::put(key, swap.value, Some(put))]);
        for (gone, revision) in swap.gone {
            let gone = self.keys.subnet(&gone);
            when.push(Compare::mod_revision(gone.as_str(), CompareOp::Equal, revision));
            then.push(TxnOp::delete(gone, None));
        }
        let mut kv = self.client.kv_client();
        Ok(self.request(kv.txn(Txn::new().when(when).and_then(then))).await?.succeeded())
    }

    /// Creates an etcd lease of [`TTL`] seconds and returns its id.
    pub(super) async fn grant(&mut self) -> Result<i64, StoreError> {
        let mut client = self.client.lease_client();
        Ok(self.request(client.grant(TTL, None)).await?.id())
    }

    /// Ends an etcd lease, and with it its keys.
    pub(super) async fn revoke(&mut self, id: i64) -> Result<(), StoreError> {
        let mut client = self.client.lease_client();
        self.request(client.revoke(id)).await.map(drop)
    }

    /// Renews an etcd lease. Returns its TTL, or zero if it has expired.
    pub(super) async fn keep_alive(&mut self, id: i64) -> Result<Duration, StoreError> {
        let mut client = self.client.lease_client();
        let renewed = async {
            let (mut keeper, mut answers) = client.keep_alive(id).await?;
            keeper.keep_alive().await?;
            let answer = answers.message().await?;
            answer.map(|answer| answer.ttl()).ok_or_else(|| Error::Internal("it ended the renewal".into()))
        };
        let renewed = async {
            match renewed.await {
                // The library reports an expired lease by this error.
                Err(Error::LeaseKeepAliveError(_)) => Ok(0),
                answer => answer,
            }
        };
        let seconds = self.request(renewed).await?;
        Ok(Duration::from_secs(seconds.try_into().unwrap_or_default()).min(MAX_TTL))
    }
}

/// Messages of a watch.
pub(super) struct Stream {
    stream: WatchStream,
    endpoint: String,
}

impl Stream {
    /// Returns the next message. `Err(None)` means that it was larger than [`MAX_REPLY_BYTES`].
    pub(super) async fn next(&mut self) -> Result<WatchResponse, Option<StoreError>> {
        match self.stream.message().await {
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(Some(StoreError::new(&self.endpoint, "it ended the watch"))),
            Err(error) if error_text::is_too_large(&error) => Err(None),
            Err(error) => Err(Some(StoreError::new(&self.endpoint, error_text::describe(&error)))),
        }
    }
}

/// Reason for which a request failed.
pub(super) struct RequestError {
    /// Text of the error, with advice if there is any.
    pub(super) why: String,
    /// True if the request timed out.
    timed_out: bool,
    /// True if the reply was too large.
    is_too_large: bool,
}

impl RequestError {
    fn new(why: String) -> Self {
        Self { why, timed_out: false, is_too_large: false }
    }

    fn timeout(patience: Duration) -> Self {
        Self { timed_out: true, ..Self::new(timeout_text(patience)) }
    }
}

/// Runs a request with a timeout.
async fn with_timeout<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, Error>>,
) -> Result<T, RequestError> {
    match timeout(limit, request).await {
        Ok(answer) => answer.map_err(|error| RequestError {
            is_too_large: error_text::is_too_large(&error),
            ..RequestError::new(error_text::describe(&error))
        }),
        Err(_) => Err(RequestError::timeout(limit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_keys_equal_flannels() {
        for (prefix, config) in [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("/coreos.com//network/", "/coreos.com/network/config"),
            ("net", "net/config"),
            ("/", "/config"),
        ] {
            let keys = Keys::new(prefix);
            assert_eq!(keys.config(), config);
            assert_eq!(keys.name(config.as_bytes()), Some(Name::Config));
            assert_eq!(keys.name(keys.subnet("10.3.7.0-24").as_bytes()), Some(Name::Subnet("10.3.7.0-24")));
            for foreign in ["/x", "/coreos.com/network/configs", "/coreos.com/network/subnets"] {
                assert_eq!(keys.name(foreign.as_bytes()), None, "{prefix} {foreign}");
            }
        }
    }
}
