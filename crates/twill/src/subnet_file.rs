//! The subnet file on disk: what an earlier run or flannel left in it. Its text is the plan's part, its writing `files`'.

use std::path::Path;

use ipnet::IpNet;
use plan::lease::Subnet;
use plan::subnet_env;

use crate::files;

/// This node's subnets of then, if they can be read.
pub(crate) fn previous(path: &Path) -> Option<Subnet> {
    subnet_env::previous_subnet(&files::read_to_string(path).ok()?)
}

/// The pod networks that it was written for.
pub(crate) fn networks(path: &Path) -> Vec<IpNet> {
    files::read_to_string(path).map(|text| subnet_env::networks(&text)).unwrap_or_default()
}
