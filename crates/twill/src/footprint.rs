//! Footprint: a list of what may be ours in this node's kernel, written before any of it is made. It lies beside the
//! subnet file, where a reboot removes it as it removes the kernel's objects. A later config, a later run and
//! `twill uninstall` know from it what to remove.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use plan::LinkName;
use plan::config::Config;
use plan::owned::{Owned, Sweep};
use plan::state::MAIN_TABLE;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::files::{self, Readers};

/// Format of the file; a file of another format is ignored.
const FORMAT: u32 = 1;

/// Bounds of what is ours, as they outlive a process:
///
/// ```json
/// {"format":1,"uplink":"eth0","tables":[254],"networks":["10.244.0.0/16"],"devices":["flannel.1"],
///  "announced_devices":["flannel.1"],"firewall":true,"socket":"/run/flannel/twill.sock"}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Footprint {
    format: u32,
    pub(crate) uplink: LinkName,
    pub(crate) tables: Vec<u32>,
    pub(crate) networks: Vec<IpNet>,
    pub(crate) devices: Vec<LinkName>,
    /// Devices of this node's own backend.
    pub(crate) announced_devices: Vec<LinkName>,
    /// True if the traffic rules are ours.
    #[serde(default = "yes")]
    pub(crate) firewall: bool,
    /// Path of the daemon's socket; a killed daemon leaves it behind.
    pub(crate) socket: PathBuf,
}

/// Default for a footprint that does not mention traffic rules: they may be flannel's.
fn yes() -> bool {
    true
}

impl Footprint {
    /// Returns the path of the footprint: `/run/flannel/subnet.env` has `/run/flannel/.subnet.env.footprint`.
    pub(crate) fn path(subnet_file: &Path) -> PathBuf {
        let name = subnet_file.file_name().unwrap_or_default().display();
        subnet_file.with_file_name(format!(".{name}.footprint"))
    }

    pub(crate) fn new(config: &Config, owned: &Owned, socket: &Path) -> Self {
        Self {
            format: FORMAT,
            uplink: owned.uplink,
            tables: owned.all_tables().collect(),
            networks: owned.all_networks().copied().collect(),
            devices: owned.links.clone(),
            announced_devices: config.backend.devices(config.families()),
            firewall: owned.firewall,
            socket: socket.to_owned(),
        }
    }

    /// Reads the footprint of an earlier run. An unusable file is logged and counts as missing.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        let read = match files::read_own(path) {
            Ok(text) => serde_json::from_slice::<Self>(&text).map_err(|error| error.to_string()),
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => Err(error.to_string()),
        };
        let known = read.and_then(|footprint| match footprint.format {
            FORMAT => Ok(footprint),
            format => Err(format!("its format is {format}, and this version knows {FORMAT}")),
        });
        known.inspect_err(|why| warn!("ignoring {}: {why}", path.display())).ok()
    }

    /// Writes the file, if its text has changed.
    pub(crate) fn write(&self, path: &Path) -> std::io::Result<()> {
        let text = serde_json::to_string(self)? + "\n";
        files::write(path, &text, Readers::Everyone).map(drop)
    }

    /// Returns the footprint as the bounds of a plan.
    pub(crate) fn owned(&self) -> Owned {
        Owned {
            links: self.devices.clone(),
            networks: self.networks.clone(),
            former_tables: self.tables.iter().skip(1).copied().collect(),
            firewall: self.firewall,
            sweep: Sweep::LeftOvers,
            ..Owned::new(self.uplink, self.tables.first().copied().unwrap_or(MAIN_TABLE))
        }
    }
}

#[cfg(fuzzing)]
pub(crate) fn fuzz(json: &[u8]) {
    let _ = serde_json::from_slice::<Footprint>(json).map(|footprint| footprint.owned());
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_footprint_is_read_as_it_was_written_and_another_format_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = Footprint::path(&dir.path().join("subnet.env"));
        assert!(path.ends_with(".subnet.env.footprint"));
        assert_eq!(Footprint::read(&path), None);
        let footprint = Footprint {
            format: FORMAT,
            uplink: "eth0".parse().unwrap(),
            tables: vec![254],
            networks: vec!["10.244.0.0/16".parse().unwrap()],
            devices: vec!["flannel.1".parse().unwrap()],
            announced_devices: vec![],
            firewall: true,
            socket: "/run/flannel/twill.sock".into(),
        };
        footprint.write(&path).unwrap();
        assert_eq!(Footprint::read(&path).as_ref(), Some(&footprint));
        Footprint { format: FORMAT + 1, ..footprint }.write(&path).unwrap();
        assert_eq!(Footprint::read(&path), None);
        fs::write(&path, "{\"format\":1,").unwrap();
        assert_eq!(Footprint::read(&path), None);
    }
}
