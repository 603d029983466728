//! A small disk of its own for a directory, and how it comes to be full. It goes with the lab.

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
    /// Mounts an empty one. A daemon that runs already sees none of it.
    pub fn mount(path: &Path) -> Self {
        let args = ["-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs"];
        let out = Command::new("mount").args(args).arg(path).output().expect("mount starts");
        assert!(out.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&out.stderr));
        Self { path: path.to_owned() }
    }

    /// Leaves room for new names and not for one byte.
    pub fn fill(&self) {
        let mut file = File::create(self.filler()).expect("a new name on the disk");
        let full = (0..=16).find_map(|_| file.write_all(&[0; 4096]).err());
        assert_eq!(full.map(|error| error.kind()), Some(ErrorKind::StorageFull), "{}", self.path.display());
    }

    pub fn free(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.path.join(".filler")
    }
}
