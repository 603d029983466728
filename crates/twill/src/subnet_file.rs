//! The subnet file on disk: what an earlier run or flannel left in it. Its text is the plan's part, its writing `files`'.

use std::fs;
use std::path::Path;

use ipnet::IpNet;
use plan::lease::Subnet;
use plan::subnet_env;

/// This node's subnets of then, if they can be read.
pub(crate) fn previous(path: &Path) -> Option<Subnet> {
    subnet_env::previous_subnet(&fs::read_to_string(path).ok()?)
}

/// The pod networks that it was written for.
pub(crate) fn networks(path: &Path) -> Vec<IpNet> {
    fs::read_to_string(path).map(|text| subnet_env::networks(&text)).unwrap_or_default()
}
