//! Files below `/proc/sys`: read and written as they are, one at a time.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use plan::state::Sysctl;

use crate::error::Cause;

/// Below it is every sysctl that is written.
pub const SYSCTLS: &str = "/proc/sys/net";

fn file(path: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(path)
}

/// `None` where there is no such file: its device or module is not there.
pub(crate) fn read(path: &str) -> Option<Sysctl> {
    let value = fs::read_to_string(file(path)).ok()?;
    Some(Sysctl { path: path.into(), value: value.trim().into() })
}

pub(crate) fn write(row: &Sysctl) -> Result<(), Cause> {
    // Not fs::write, which would try to create the file.
    let file = fs::File::options().write(true).open(file(&row.path));
    file.and_then(|mut file| file.write_all(row.value.as_bytes())).map_err(|error| Cause::from(&error))
}
