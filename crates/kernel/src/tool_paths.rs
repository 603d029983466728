//! Paths of the tools that read and write traffic rules, for code that has to permit their use. No tool is run here.

use std::path::PathBuf;

use crate::command;

/// Names that cover every program; all other tools are links to the same programs.
const NAMES: [&str; 4] = ["nft", "iptables-save", "iptables-nft-save", "iptables-legacy-save"];

/// Returns the directories in which the tools are or may be installed: PATH, and where its links lead to.
pub fn tool_dirs() -> Vec<PathBuf> {
    let files = NAMES.into_iter().filter_map(command::find);
    let real = files.filter_map(|file| Some(file.canonicalize().ok()?.parent()?.to_owned()));
    let dirs = command::dirs().into_iter().filter_map(|dir| dir.canonicalize().ok());
    let mut dirs: Vec<PathBuf> = dirs.chain(real).collect();
    dirs.sort_unstable();
    dirs.dedup();
    dirs
}

/// Returns the path of the file that iptables-legacy locks while it works.
pub fn xtables_lock() -> PathBuf {
    std::env::var_os("XTABLES_LOCKFILE").map_or_else(|| "/run/xtables.lock".into(), PathBuf::from)
}
