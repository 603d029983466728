//! Reads the subnet file that an earlier run or flannel left. `plan::subnet_env` parses its text; `files` writes it.

use std::path::Path;

use ipnet::IpNet;
use plan::subnet::Subnet;
use plan::subnet_env;

use crate::files;

/// Returns this node's pod subnets from the file; `None` if the file cannot be read or names none.
pub(crate) fn previous(path: &Path) -> Option<Subnet> {
    subnet_env::previous_subnet(&files::read_to_string(path).ok()?)
}

/// Returns the pod networks from the file; empty if it cannot be read.
pub(crate) fn networks(path: &Path) -> Vec<IpNet> {
    files::read_to_string(path).map(|text| subnet_env::networks(&text)).unwrap_or_default()
}
