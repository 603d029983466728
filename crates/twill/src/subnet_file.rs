//! The subnet file on disk: written whole or not at all, and only when its text changes (flannel-compat 8.3).

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use ipnet::IpNet;
use plan::lease::Subnet;
use plan::subnet_env;

/// What an earlier run left, if it can be read.
pub(crate) fn previous(path: &Path) -> Option<Subnet> {
    subnet_env::previous_subnet(&fs::read_to_string(path).ok()?)
}

/// The pod networks that it was written for.
pub(crate) fn networks(path: &Path) -> Vec<IpNet> {
    fs::read_to_string(path).map(|text| subnet_env::networks(&text)).unwrap_or_default()
}

/// Makes the file say `text`. Returns whether it had to be written.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<bool> {
    if fs::read(path).is_ok_and(|present| present == text.as_bytes()) {
        return Ok(false);
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let mode =
        fs::metadata(path).ok().filter(fs::Metadata::is_file).map_or(0o644, |old| old.permissions().mode());
    let name = path.file_name().unwrap_or_default().display();
    let beside = dir.join(format!(".{name}.new"));
    let mut file = File::options().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
    // The umask must not decide whether the CNI plugin can read it.
    file.set_permissions(fs::Permissions::from_mode(mode & 0o777))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn an_unchanged_file_keeps_its_inode_and_a_changed_one_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/subnet.env");
        assert!(write(&path, "A=1\n").unwrap());
        let inode = fs::metadata(&path).unwrap().ino();
        assert!(!write(&path, "A=1\n").unwrap());
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(write(&path, "A=2\n").unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap(), "A=2\n");
    }
}
