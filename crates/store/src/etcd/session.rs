//! One connection to one etcd server, and the few things that are asked of it, each with a limit of time. What an answer
//! means is not decided here.

use std::fs;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, GetOptions, Identity, KeyValue,
    PutOptions, TlsOptions, Txn, TxnOp, WatchOptions, WatchResponse, WatchStream,
};
use tokio::time::timeout;

use super::EtcdOptions;
use super::listing::Listing;
use super::words;
use crate::view::StoreError;

/// How long one server may take to answer.
pub(super) const ANSWER: Duration = Duration::from_millis(1500);
/// The same of a page of a list, which nothing waits for but the list.
const LONG_ANSWER: Duration = Duration::from_secs(10);
/// And of whether a password is right.
const LOGIN: Duration = Duration::from_secs(5);
/// Entries that are asked for at a time.
const PAGE: i64 = 1000;
/// Bytes that such an answer may have: an entry may have 1.5 MB, and some do not hide the others.
const LARGEST_ANSWER: usize = 64 << 20;
/// Nothing that lasts longer is a lease.
const A_YEAR: Duration = Duration::from_secs(365 * 86400);
/// Letters of a key that are told.
const LONGEST_KEY: usize = 100;
/// flannel's, in seconds (flannel-compat 4.4).
const TTL: i64 = 86400;

/// The names of our keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

/// Which of them it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name<'a> {
    Config,
    /// Of a lease, by the last part of its key.
    Subnet(&'a str),
}

impl Keys {
    /// Slashes that are doubled or at the end do not count, as with flannel (flannel-compat 4.2).
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

    pub(super) fn of(&self, name: Name) -> String {
        match name {
            Name::Config => self.config(),
            Name::Subnet(key) => self.subnet(key),
        }
    }

    /// Whose key it is; `None` for somebody else's.
    pub(super) fn name<'a>(&self, key: &'a [u8]) -> Option<Name<'a>> {
        match key.strip_prefix(self.prefix.as_bytes())? {
            b"/config" => Some(Name::Config),
            rest => match str::from_utf8(rest.strip_prefix(b"/subnets/")?) {
                // No lease's key is that long, and nobody wants to read all of it.
                Ok(key) => Some(Name::Subnet(&key[..key.floor_char_boundary(LONGEST_KEY)])),
                Err(_) => Some(Name::Subnet("(not UTF-8)")),
            },
        }
    }

    /// From the config to the last lease.
    fn all(&self) -> (String, String) {
        (self.config(), format!("{}/subnets0", self.prefix))
    }
}

/// A connection. Copies share it.
#[derive(Clone)]
pub(super) struct Session {
    client: Client,
    pub(super) endpoint: String,
    pub(super) keys: Keys,
}

/// What became of a history while it was not heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Since {
    /// It goes on, and tells what was missed.
    Same,
    /// It is forgotten, or was never known.
    Unknown,
    /// It was never there.
    Another,
}

/// What is to be written, and what has to stand for it.
pub(super) struct Swap<'a> {
    pub(super) key: &'a str,
    pub(super) value: String,
    /// The revision of what it takes the place of; `None` where nothing may stand.
    pub(super) over: Option<i64>,
    /// Entries that go with the same step, and their revisions.
    pub(super) gone: Vec<(String, i64)>,
    /// The etcd lease that a new entry is attached to.
    pub(super) lease_id: i64,
}

impl Session {
    /// Connects, and logs in where a user is given.
    pub(super) async fn open(endpoint: &str, keys: &Keys, options: &EtcdOptions) -> Result<Self, StoreError> {
        let fault = |error: String| StoreError::new(endpoint, error);
        let connect = connect_options(endpoint, options).map_err(fault)?;
        // Passwords are meant to be slow to check, and after a restart all nodes come at once.
        let limit = if options.has_user() { LOGIN } else { ANSWER };
        let client = within(limit, Client::connect([endpoint], Some(connect))).await.map_err(fault)?;
        let session = Self { client, endpoint: endpoint.to_owned(), keys: keys.clone() };
        // The client connects with the first question.
        session.get(Name::Config).await?;
        Ok(session)
    }

    pub(super) fn fault(&self, why: impl std::fmt::Display) -> StoreError {
        StoreError::new(&self.endpoint, why)
    }

    pub(super) fn silent(&self, patience: Duration) -> StoreError {
        self.fault(silence(patience))
    }

    async fn ask<T>(&self, request: impl Future<Output = Result<T, Error>>) -> Result<T, StoreError> {
        within(ANSWER, request).await.map_err(|why| self.fault(why))
    }

    /// The entry of that name; and the cluster's number and revision at that moment.
    pub(super) async fn get(&self, name: Name<'_>) -> Result<((u64, i64), Option<KeyValue>), StoreError> {
        let mut kv = self.client.kv_client().max_decoding_message_size(LARGEST_ANSWER);
        let mut response = self.ask(kv.get(self.keys.of(name), None)).await?;
        let at = response.header().map_or((0, 0), |header| (header.cluster_id(), header.revision()));
        Ok((at, response.take_kvs().pop()))
    }

    /// Reads all at one revision, page by page.
    pub(super) async fn list(&mut self, options: &EtcdOptions) -> Result<Listing, StoreError> {
        let (start, end) = self.keys.all();
        let mut from = start.into_bytes();
        let mut kv = self.client.kv_client().max_decoding_message_size(LARGEST_ANSWER);
        let mut listing: Option<Listing> = None;
        loop {
            let revision = listing.as_ref().map_or(0, |listing| listing.revision);
            let page = GetOptions::new().with_range(end.as_str()).with_limit(PAGE).with_revision(revision);
            let response =
                within(LONG_ANSWER, kv.get(from, Some(page))).await.map_err(|why| self.fault(why))?;
            let header = response.header().ok_or_else(|| self.fault("an answer without a header"))?;
            let listing = listing
                .get_or_insert_with(|| Listing::new(header.cluster_id(), header.revision(), &self.keys));
            for kv in response.kvs() {
                listing.put(kv, &self.keys, options);
            }
            match response.kvs().last() {
                Some(last) if response.more() => {
                    // The first key behind it.
                    from = last.key().to_vec();
                    from.push(0);
                }
                _ => break,
            }
        }
        listing.ok_or_else(|| self.fault("an empty answer"))
    }

    /// Does this cluster go on from where the listing is? One that was restored or emptied may well be called the same and
    /// have gone further since; but there, what was written last did not stand at the very revision.
    pub(super) async fn since(&self, listing: &Listing) -> Result<Since, StoreError> {
        let Some((name, written)) = listing.newest().filter(|_| listing.cluster != 0) else {
            return Ok(Since::Unknown);
        };
        let mut kv = self.client.kv_client().max_decoding_message_size(LARGEST_ANSWER);
        let then = GetOptions::new().with_revision(listing.revision);
        match within(ANSWER, kv.get(self.keys.of(name), Some(then))).await {
            Ok(response) => {
                let same = response.header().is_some_and(|header| header.cluster_id() == listing.cluster);
                let stood = response.kvs().first().is_some_and(|kv| kv.mod_revision() == written);
                Ok(if same && stood { Since::Same } else { Since::Another })
            }
            Err(why) if why.contains("has been compacted") => Ok(Since::Unknown),
            Err(why) if why.contains("is a future revision") => Ok(Since::Another),
            Err(why) => Err(self.fault(why)),
        }
    }

    /// Hears of all that happened at that revision and happens later.
    pub(super) async fn watch(&mut self, from: i64) -> Result<Stream, StoreError> {
        let (start, end) = self.keys.all();
        let options = WatchOptions::new().with_range(end).with_start_revision(from).with_fragment();
        let mut client = self.client.watch_client().max_decoding_message_size(LARGEST_ANSWER);
        let stream = self.ask(client.watch(start, Some(options))).await?;
        Ok(Stream { stream, endpoint: self.endpoint.clone() })
    }

    /// Writes if all stands as it did. `false`: somebody was faster.
    pub(super) async fn swap(&mut self, swap: Swap<'_>) -> Result<bool, StoreError> {
        let key = self.keys.subnet(swap.key);
        let (own, put) = match swap.over {
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
        Ok(self.ask(kv.txn(Txn::new().when(when).and_then(then))).await?.succeeded())
    }

    pub(super) async fn grant(&mut self) -> Result<i64, StoreError> {
        let mut client = self.client.lease_client();
        Ok(self.ask(client.grant(TTL, None)).await?.id())
    }

    pub(super) async fn revoke(&mut self, id: i64) -> Result<(), StoreError> {
        let mut client = self.client.lease_client();
        self.ask(client.revoke(id)).await.map(drop)
    }

    /// Begins an etcd lease's time anew. How long it lasts now; zero when it is over.
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
                // So the library says that there is no such lease.
                Err(Error::LeaseKeepAliveError(_)) => Ok(0),
                answer => answer,
            }
        };
        let seconds = self.ask(renewed).await?;
        Ok(Duration::from_secs(seconds.try_into().unwrap_or_default()).min(A_YEAR))
    }
}

/// What a watch tells.
pub(super) struct Stream {
    stream: WatchStream,
    endpoint: String,
}

impl Stream {
    pub(super) async fn next(&mut self) -> Result<WatchResponse, StoreError> {
        match self.stream.message().await {
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(StoreError::new(&self.endpoint, "it ended the watch")),
            Err(error) => Err(StoreError::new(&self.endpoint, words::why(&error))),
        }
    }

    /// Wants any answer.
    pub(super) async fn ask(&mut self) -> Result<(), StoreError> {
        let asked = within(ANSWER, self.stream.request_progress()).await;
        asked.map_err(|why| StoreError::new(&self.endpoint, why))
    }
}

async fn within<T>(limit: Duration, request: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
    match timeout(limit, request).await {
        Ok(answer) => answer.map_err(|error| words::why(&error)),
        Err(_) => Err(silence(limit)),
    }
}

fn silence(patience: Duration) -> String {
    format!("no answer within {} s", patience.as_secs_f32())
}

/// Certificates are read anew for each connection, since they are renewed under a running daemon.
fn connect_options(endpoint: &str, options: &EtcdOptions) -> Result<ConnectOptions, String> {
    let mut connect = ConnectOptions::new()
        .with_connect_timeout(ANSWER)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if options.has_user() {
        connect = connect.with_user(&options.username, &options.password);
    }
    // As with flannel, what is said of certificates does not count for a server that has none.
    if !endpoint.starts_with("https://") {
        return Ok(connect);
    }
    let mut tls = TlsOptions::new();
    tls = match pem(&options.cafile)? {
        Some(ca) => tls.ca_certificate(Certificate::from_pem(ca)),
        None => tls.with_native_roots(),
    };
    if let (Some(certificate), Some(key)) = (pem(&options.certfile)?, pem(&options.keyfile)?) {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    Ok(connect.with_tls(tls))
}

fn pem(path: &Path) -> Result<Option<Vec<u8>>, String> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    fs::read(path).map(Some).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_flannels() {
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
