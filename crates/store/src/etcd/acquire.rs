//! Acquisition of our lease in etcd. The node chooses from what is stored, and writes only if that is unchanged. The loser of
//! such a race chooses again.

use std::sync::Arc;
use std::time::Duration;

use plan::lease::Lease;
use tokio::time::sleep;
use tracing::{debug, info};

use super::EtcdOptions;
use super::backoff::jittered;
use super::listing::Listing;
use super::session::{Name, Session, Swap};
use crate::claim::{AcceptableSubnet, Claim, LeaseToWrite};
use crate::view::StoreError;

/// Maximum number of attempts until our lease is confirmed. A node that has won a race takes part in no further one.
const ATTEMPTS: usize = 30;
/// Maximum number of old leases of ours that one transaction deletes; etcd allows 128 operations.
const MOVED: usize = 100;
/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(30);

/// Writes our lease, and returns it with the list that was read for it, if one was.
pub(super) async fn acquire(
    session: &mut Session,
    options: &EtcdOptions,
    claim: &Claim,
) -> Result<(Lease, Option<Listing>), StoreError> {
    let scope = claim.scope();
    for attempt in 0..ATTEMPTS {
        if attempt > 1 {
            sleep(jittered(PAUSE)).await;
        }
        let (listing, leases) = match &claim.choice {
            // A new lease is checked once more. A lease of another key may overlap it, and the older one stays.
            AcceptableSubnet::Any { .. } => {
                let mut listing = session.list(options, Some(scope.clone())).await?;
                let mut leases = listing.leases();
                let spared =
                    listing.unreadable().filter(|subnet| claim.must_spare(subnet)).map(Lease::unknown);
                let spared: Vec<Lease> = spared.collect();
                if !spared.is_empty() {
                    leases = leases.iter().cloned().chain(spared).collect();
                }
                (listing, leases)
            }
            AcceptableSubnet::Only(subnet) => {
                fresh(session, options, &subnet.to_string(), &claim.listed).await?
            }
        };
        let chosen = claim.choose_lease(&leases).map_err(|why| why.at(&session.endpoint))?;
        let key = chosen.lease.subnet.to_string();
        let value = chosen.lease.to_json();
        let standing = listing.entry(&key);
        let is_written =
            standing.is_some_and(|entry| matches!(&entry.parsed, Ok(lease) if lease.to_json() == value));
        if is_written && chosen.stale.is_empty() {
            info!(subnet = %chosen.lease.subnet, origin = ?chosen.origin, "our lease is in the store");
            let listed = matches!(claim.choice, AcceptableSubnet::Any { .. });
            return Ok((chosen.lease, listed.then_some(listing)));
        }
        if !write(session, &listing, chosen, &key, value).await? {
            debug!("another node has written {key} meanwhile; choosing again");
        }
    }
    Err(session.fault("another writer changed our lease during each attempt; retrying"))
}

/// Returns the known leases, with one entry read again.
async fn fresh(
    session: &Session,
    options: &EtcdOptions,
    key: &str,
    known: &[Lease],
) -> Result<(Listing, Arc<[Lease]>), StoreError> {
    let ((cluster, revision), entry) = session.get(Name::Subnet(key)).await?;
    let mut listing = Listing::new(&session.keys, None);
    (listing.cluster, listing.revision) = (cluster, revision);
    if let Some(kv) = &entry {
        listing.put(kv, true, &session.keys, options);
    }
    let others = known.iter().filter(|lease| lease.subnet.to_string() != key).cloned();
    let leases = others.chain(listing.leases().iter().cloned()).collect();
    Ok((listing, leases))
}

/// Writes the lease if its key and the stale ones are unchanged; returns false if not. A lease that moves keeps its etcd lease,
/// and a reservation stays one.
async fn write(
    session: &mut Session,
    listing: &Listing,
    chosen: LeaseToWrite,
    key: &str,
    value: String,
) -> Result<bool, StoreError> {
    let replaced = listing.entry(key).map(|entry| entry.mod_revision);
    let stale = chosen.stale.iter().map(ToString::to_string).filter(|stale| stale != key);
    let gone: Vec<_> = stale
        .filter_map(|stale| listing.entry(&stale).map(|entry| (stale, entry.mod_revision)))
        .take(MOVED)
        .collect();
    // If there are several, a reservation has precedence, as its id is 0.
    let moved = gone.iter().filter_map(|(stale, _)| listing.lease_id(stale)).min();
    let granted = if replaced.is_none() && moved.is_none() { Some(session.grant().await?) } else { None };
    let lease_id = moved.or(granted).unwrap_or_default();
    let written = session.swap(Swap { key, value, replaced, gone, lease_id }).await;
    if let Some(id) = granted.filter(|_| !matches!(written, Ok(true))) {
        // A grant that cannot be revoked expires by itself.
        let _ = session.revoke(id).await;
    }
    written
}
