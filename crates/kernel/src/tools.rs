//! The tools of others that traffic rules are read and written by, for whoever has to allow them. It runs none.

use std::path::PathBuf;

use crate::command;

/// One of each program; all others are links to the same.
const NAMES: [&str; 4] = ["nft", "iptables-save", "iptables-nft-save", "iptables-legacy-save"];

/// Where they are or may be put: PATH, and where its links lead to.
pub fn tool_dirs() -> Vec<PathBuf> {
    let files = NAMES.into_iter().filter_map(command::find);
    let real = files.filter_map(|file| Some(file.canonicalize().ok()?.parent()?.to_owned()));
    let dirs = command::dirs().into_iter().filter_map(|dir| dir.canonicalize().ok());
    let mut dirs: Vec<PathBuf> = dirs.chain(real).collect();
    dirs.sort_unstable();
    dirs.dedup();
    dirs
}

/// What iptables-legacy locks while it works.
pub fn xtables_lock() -> PathBuf {
    std::env::var_os("XTABLES_LOCKFILE").map_or_else(|| "/run/xtables.lock".into(), PathBuf::from)
}
