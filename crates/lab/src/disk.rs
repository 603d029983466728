//! A small disk of its own for one directory, and a way to fill it. It is gone with the lab.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted disk of 64 KiB.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts an empty disk at `path`. A daemon that already runs does not see it.
    pub fn mount(path: &Path) -> Self {
        let args = ["-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs"];
        let out = Command::new("mount").args(args).arg(path).output().expect("mount starts");
        assert!(out.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&out.stderr));
        Self { path: path.to_owned() }
    }

    /// Fills the disk: new file names still fit, but not one more byte.
    pub fn fill(&self) {
        let mut file = File::create(self.filler()).expect("a new name on the disk");
        let full = (0..=16).find_map(|_| file.write_all(&[0; 4096]).err());
        assert_eq!(full.map(|error| error.kind()), Some(ErrorKind::StorageFull), "{}", self.path.display());
    }

    /// Makes room again after [`Self::fill`].
    pub fn free(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.path.join(".filler")
    }
}
