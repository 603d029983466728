//! The tools of others that traffic rules are read and written by, for whoever has to allow them. It runs none.

use std::path::PathBuf;

use crate::command;

/// Where they are or may be put: PATH, and what its links lead to.
pub fn tool_dirs() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = command::dirs().iter().filter_map(|dir| dir.canonicalize().ok()).collect();
    dirs.sort_unstable();
    dirs.dedup();
    dirs
}

/// What iptables-legacy locks while it works.
pub fn xtables_lock() -> PathBuf {
    std::env::var_os("XTABLES_LOCKFILE").map_or_else(|| "/run/xtables.lock".into(), PathBuf::from)
}
