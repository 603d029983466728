//! Files that the daemon keeps. Each is written whole or not at all, and only when its text changes (flannel-compat 8.3).
//! A file that is a mount point, as in containers, is written in place.
//!
//! Other users may write in the same directories, such as /tmp. Therefore no file is opened through a symbolic link,
//! waited for, or read beyond a limit. A foreign file in the place of one of ours is replaced and never written to.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use tracing::warn;

/// Maximum size of a file that is read, bytes: the cache of 100,000 leases.
const MAX_BYTES: u64 = 64 << 20;
/// Flags for every open: refuse a symbolic link, and do not wait for the other end of a pipe.
pub(crate) const FLAGS: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits().cast_signed();
use rustix::io::Errno;

use crate::errno::{WithRemedy, errno};

/// Maximum length to which a text is padded with blank lines before its file is cut, bytes.
const MOST_BLANK: usize = 64 * 1024;

/// Users who may read a new file; an existing file keeps its mode.
#[derive(Clone, Copy)]
pub(crate) enum Readers {
    Everyone,
    Root,
}

/// Makes `text` the content of the file. Returns true if it had to be written. The error names its remedy.
pub(crate) fn write(path: &Path, text: &str, readers: Readers) -> io::Result<bool> {
    written(path, text, readers).map_err(|error| io::Error::new(error.kind(), WithRemedy(&error).to_string()))
}

/// Reads a regular file of at most 64 MiB. Any other file is an error.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    content(open(path)?)
}

/// Same as [`read`]. The file must also belong to root, to our own user, or to the owner of the directory.
pub(crate) fn read_own(path: &Path) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let owner = fs::metadata(dir_of(path))?.uid();
    if !is_of(&file.metadata()?, &[owner, 0, rustix::process::geteuid().as_raw()]) {
        let why = "it is no regular file of root or of this daemon's user";
        return Err(io::Error::new(ErrorKind::InvalidData, why));
    }
    content(file)
}

fn open(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(FLAGS).open(path);
    file.map_err(|error| match errno(&error) {
        Some(Errno::LOOP) => io::Error::new(ErrorKind::InvalidData, "it is a symbolic link"),
        _ => error,
    })
}

fn content(file: File) -> io::Result<Vec<u8>> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidData, "not a regular file"));
    }
    if metadata.len() > MAX_BYTES {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("larger than {MAX_BYTES} bytes")));
    }
    let mut content = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut content)?;
    Ok(content)
}

/// Reads a regular UTF-8 file of at most 64 MiB. Any other file is an error.
pub(crate) fn read_to_string(path: &Path) -> io::Result<String> {
    text(read(path)?)
}

/// Returns the text of a UTF-8 file. Any other content is an error.
pub(crate) fn text(content: Vec<u8>) -> io::Result<String> {
    String::from_utf8(content).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

/// Opens the lock file, and creates it if it is missing. A foreign file in its place is removed first.
pub(crate) fn lock(path: &Path) -> io::Result<File> {
    let open =
        || File::options().read(true).write(true).create(true).mode(0o600).custom_flags(FLAGS).open(path);
    let not_ours = match open() {
        Ok(file) if is_ours(&file.metadata()?) => return Ok(file),
        Ok(_) => "it is no regular file of root or of this daemon's user".to_owned(),
        Err(error) if fs::symlink_metadata(path).is_ok_and(|there| !there.is_dir() && !is_ours(&there)) => {
            error.to_string()
        }
        Err(error) => return Err(error),
    };
    warn!("replacing {}, which is not the lock file of a daemon: {not_ours}", path.display());
    fs::remove_file(path)?;
    File::options().read(true).write(true).create_new(true).mode(0o600).custom_flags(FLAGS).open(path)
}

/// Returns true if only root or our own user can have made the file.
fn is_ours(file: &Metadata) -> bool {
    is_of(file, &[0, rustix::process::geteuid().as_raw()])
}

fn is_of(file: &Metadata, users: &[u32]) -> bool {
    file.is_file() && file.nlink() == 1 && users.contains(&file.uid())
}

fn written(path: &Path, text: &str, readers: Readers) -> io::Result<bool> {
    let present = fs::symlink_metadata(path).ok().filter(is_ours);
    if present.is_some() && read(path).is_ok_and(|present| present == text.as_bytes()) {
        return Ok(false);
    }
    // A device or a directory is never replaced by a file.
    if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file() && !there.is_symlink()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    match replace(path, text, present.as_ref(), readers) {
        Err(error) if present.is_some() && is_about_place(&error) => {
            overwrite(path, text).map_err(|in_place| both(&error, in_place))?;
        }
        done => done?,
    }
    Ok(true)
}

/// Returns true if nothing can be put in the file's place or beside it. It is a mount point then, or its directory cannot
/// be written.
fn is_about_place(error: &io::Error) -> bool {
    let place = [Errno::BUSY, Errno::XDEV, Errno::ROFS, Errno::ACCESS, Errno::PERM];
    errno(error).is_some_and(|errno| place.contains(&errno))
}

/// Returns the error of a file that can be neither replaced nor written in place. Each of the two has its own reason.
fn both(replacing: &io::Error, in_place: io::Error) -> io::Error {
    match replacing.raw_os_error() == in_place.raw_os_error() {
        true => in_place,
        false => {
            let words = format!("{}; nor can it be replaced: {replacing}", WithRemedy(&in_place));
            io::Error::new(in_place.kind(), words)
        }
    }
}

/// Writes a new file beside it and renames that, so that no reader sees half of the text.
fn replace(path: &Path, text: &str, present: Option<&fs::Metadata>, readers: Readers) -> io::Result<()> {
    let dir = dir_of(path);
    fs::create_dir_all(dir)?;
    let new = match readers {
        Readers::Everyone => 0o644,
        Readers::Root => 0o600,
    };
    let mode = present.map_or(new, |present| present.permissions().mode());
    let name = path.file_name().unwrap_or_default().display();
    let beside = dir.join(format!(".{name}.new"));
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = File::options().write(true).create_new(true).mode(mode).open(&beside)?;
    let done = fill(file, text, mode).and_then(|()| fs::rename(&beside, path));
    if done.is_err() {
        // Half a file is of no use and takes up room.
        let _ = fs::remove_file(&beside);
    }
    done
}

fn fill(mut file: File, text: &str, mode: u32) -> io::Result<()> {
    // The umask must not decide whether the CNI plugin can read the file.
    file.set_permissions(fs::Permissions::from_mode(mode & 0o777))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Writes in place. A reader may see blank lines after the text at that moment, and old text behind [`MOST_BLANK`]. The
/// write needs no more disk space than before, unless the text is longer.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::options().write(true).custom_flags(FLAGS).open(path)?;
    let length = text.len() as u64;
    let before = usize::try_from(file.metadata()?.len()).unwrap_or(0).min(MOST_BLANK);
    file.write_all(format!("{text:\n<before$}").as_bytes())?;
    file.set_len(length)?;
    file.sync_all()
}

/// Deletes the file, if it exists; a mount point is emptied instead.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if errno(&error) == Some(Errno::BUSY) => {
            File::options().write(true).open(path)?.set_len(0)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Returns the directory that a file is in or will be in.
pub(crate) fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns true if only root and our own user can change the entries of the directory.
pub(crate) fn is_private(dir: &Path) -> bool {
    let of_root = |dir: &Metadata| [0, rustix::process::geteuid().as_raw()].contains(&dir.uid());
    fs::metadata(dir).is_ok_and(|dir| of_root(&dir) && dir.mode() & 0o022 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn files_are_not_read_or_written_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let [path, victim, beside] =
            ["subnet.env", "victim", ".subnet.env.new"].map(|name| dir.path().join(name));
        fs::write(&victim, "A=1\n").unwrap();
        symlink(&victim, &path).unwrap();
        symlink(&victim, &beside).unwrap();
        assert!(read(&path).is_err());
        assert!(write(&path, "A=1\n", Readers::Everyone).unwrap(), "the same text elsewhere is not ours");
        assert!(write(&path, "A=2\n", Readers::Everyone).unwrap());
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "A=1\n");
        fs::hard_link(&victim, &beside).unwrap();
        write(&path, "A=3\n", Readers::Everyone).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "A=1\n");
    }

    #[test]
    fn a_file_that_can_be_neither_replaced_nor_written_in_place_is_told_with_both_reasons() {
        let [busy, read_only] = [Errno::BUSY, Errno::ROFS].map(io::Error::from);
        let text = both(&busy, read_only).to_string();
        assert!(text.contains("it is mounted read-only: mount it writable"), "{text}");
        assert!(text.ends_with("nor can it be replaced: Device or resource busy (os error 16)"), "{text}");
        let same = both(&Errno::ROFS.into(), Errno::ROFS.into());
        assert_eq!(errno(&same), Some(Errno::ROFS));
    }

    #[test]
    fn a_foreign_file_in_place_of_a_lock_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let [path, victim] = ["lock", "victim"].map(|name| dir.path().join(name));
        let inode = |file: &File| file.metadata().unwrap().ino();
        let first = lock(&path).unwrap();
        assert_eq!(inode(&first), inode(&lock(&path).unwrap()), "one that is ours stays");
        fs::write(&victim, "kept").unwrap();
        let none = dir.path().join("none");
        for target in [&victim, &none, &path, &dir.path().to_owned()] {
            fs::remove_file(&path).unwrap();
            symlink(target, &path).unwrap();
            assert!(lock(&path).unwrap().metadata().unwrap().is_file());
            assert!(fs::symlink_metadata(&path).unwrap().is_file() && !none.exists());
        }
        fs::remove_file(&path).unwrap();
        fs::hard_link(&victim, &path).unwrap();
        lock(&path).unwrap().set_len(0).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");
        fs::remove_file(&path).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(lock(&path).unwrap().metadata().unwrap().is_file());
        assert!(lock(dir.path()).is_err(), "a directory is nobody's lock");
    }

    #[test]
    fn pipes_and_oversized_files_are_not_read() {
        assert!(read(Path::new("/dev/zero")).is_err());
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(read(&pipe).is_err() && read_own(&pipe).is_err());
        assert!(lock(&pipe).unwrap().metadata().unwrap().is_file());
        let large = File::create(dir.path().join("large")).unwrap();
        large.set_len(MAX_BYTES + 1).unwrap();
        assert!(read(&dir.path().join("large")).is_err());
    }

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
        let whole = fs::read_to_string(&path).unwrap();
        overwrite(&path, "B=1\nC=1\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "B=1\nC=1\n", "longer");
        overwrite(&path, &whole).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), whole, "shorter");
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(
            write(&socket, "A=2\n", Readers::Root).is_err_and(|error| error.to_string().contains("regular"))
        );
    }
}
