//! Files that a pass writes: footprint, subnet file and leases cache. The footprint is written before any object is
//! made.

use std::time::Instant;

use plan::Mac;
use plan::lease::Leases;
use plan::owned::Owned;
use plan::subnet_env::SubnetEnv;
use plan::warning::Warning;
use store::View;
use tracing::info;

use super::Reconciler;
use crate::cache::{CachedState, WrittenLeases};
use crate::files::{self, Readers};
use crate::footprint::Footprint;

impl Reconciler {
    /// Writes the footprint, if it has changed, before the objects in it are made. Returns a warning if it cannot be
    /// written.
    pub(super) fn write_footprint(&mut self, owned: &Owned) -> Option<Warning> {
        let footprint = Footprint::new(&self.config, owned, &self.flags.socket);
        if self.memory.footprint.as_ref() == Some(&footprint) {
            return None;
        }
        let path = Footprint::path(&self.flags.subnet_file);
        match footprint.write(&path) {
            Ok(()) => {
                self.memory.footprint = Some(footprint);
                None
            }
            Err(error) => {
                let (path, why) = (path.display().to_string().into(), error.to_string().into());
                let loss =
                    "a later run and twill uninstall may not find everything that this run leaves behind"
                        .into();
                Some(Warning::Unwritable { path, why, loss })
            }
        }
    }

    /// Writes the believed leases to the cache. Returns the time at which to try again, if the file is not up to date.
    pub(super) fn write_cache(&mut self, view: &View, leases: &Leases, uplink_mac: Mac) -> Option<Instant> {
        let Leases::Listed(others) = leases else { return None };
        let own = self.own_lease.lease().filter(|_| view.lost.is_none())?;
        let (conf, leases) = (self.own_lease.conf(), WrittenLeases { others, own });
        let (history, until) = (self.memory.shrink_guard.history(), view.own_until);
        self.cache
            .write_if_stale(Instant::now(), || CachedState::new(uplink_mac, conf, leases, history, until))
    }

    /// Writes the subnet file if its text has changed. The error names the file and the reason.
    pub(super) fn write_subnet_file(&self) -> Result<(), String> {
        let mtu = self.config.backend.pod_mtu(&self.node.uplink);
        let config = self.config.carried(&self.node.uplink);
        let text = SubnetEnv::new(&config, &self.node.subnet, mtu, self.flags.ip_masq).to_string();
        let path = &self.flags.subnet_file;
        match files::write(path, &text, Readers::Everyone) {
            Ok(false) => Ok(()),
            Ok(true) => {
                info!("wrote {}", path.display());
                Ok(())
            }
            Err(error) => Err(format!("{} cannot be written: {error}", path.display())),
        }
    }
}
