//! Files that we keep: written whole or not at all, and only when their text changes (flannel-compat 8.3). What they say is
//! their owners' part.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Who may read a file that is new; one that is there keeps what it has.
#[derive(Clone, Copy)]
pub(crate) enum Readers {
    Everyone,
    Root,
}

/// Makes the file say `text`. Returns whether it had to be written.
pub(crate) fn write(path: &Path, text: &str, readers: Readers) -> io::Result<bool> {
    written(path, text, readers).map_err(|error| match error.kind() {
        // What `confine` allowed are the directories of then.
        io::ErrorKind::PermissionDenied => io::Error::new(
            error.kind(),
            format!("{error} (if its directory was replaced since the start, restart the daemon)"),
        ),
        _ => error,
    })
}

fn written(path: &Path, text: &str, readers: Readers) -> io::Result<bool> {
    if fs::read(path).is_ok_and(|present| present == text.as_bytes()) {
        return Ok(false);
    }
    // A device or a directory is not replaced by a file, whoever asks for it.
    if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file() && !there.is_symlink()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let dir = dir_of(path);
    fs::create_dir_all(dir)?;
    let new = match readers {
        Readers::Everyone => 0o644,
        Readers::Root => 0o600,
    };
    let present = fs::metadata(path).ok().filter(fs::Metadata::is_file);
    let mode = present.map_or(new, |present| present.permissions().mode());
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

/// The directory that a file is in, or will be.
pub(crate) fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn an_unchanged_file_keeps_its_inode_and_a_changed_one_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/subnet.env");
        let mode = || fs::metadata(&path).unwrap().mode() & 0o777;
        assert!(write(&path, "A=1\n", Readers::Everyone).unwrap());
        let inode = fs::metadata(&path).unwrap().ino();
        assert!(!write(&path, "A=1\n", Readers::Everyone).unwrap());
        assert_eq!((fs::metadata(&path).unwrap().ino(), mode()), (inode, 0o644));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(write(&path, "A=2\n", Readers::Everyone).unwrap());
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), mode()), ("A=2\n", 0o640));
        fs::remove_file(&path).unwrap();
        assert!(write(&path, "A=2\n", Readers::Root).unwrap());
        assert_eq!(mode(), 0o600);
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(
            write(&socket, "A=2\n", Readers::Root).is_err_and(|error| error.to_string().contains("regular"))
        );
    }
}
