//! The tools of others that traffic rules are read and written by, for whoever has to allow them. It runs none.

use std::path::PathBuf;

use crate::command;

const NAMES: [&str; 15] = [
    "nft",
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
    "iptables-nft-save",
    "iptables-nft-restore",
    "ip6tables-nft-save",
    "ip6tables-nft-restore",
    "iptables-legacy-save",
    "iptables-legacy-restore",
    "ip6tables-legacy-save",
    "ip6tables-legacy-restore",
];

/// Those that are there, by the files that they really are.
pub fn tools() -> Vec<PathBuf> {
    let found = NAMES.into_iter().filter_map(command::find).filter_map(|file| file.canonicalize().ok());
    let mut files: Vec<PathBuf> = found.collect();
    files.sort_unstable();
    files.dedup();
    files
}

/// What iptables-legacy locks while it works.
pub fn xtables_lock() -> PathBuf {
    std::env::var_os("XTABLES_LOCKFILE").map_or_else(|| "/run/xtables.lock".into(), PathBuf::from)
}
