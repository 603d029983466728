//! One daemon per subnet file, VNI and network: a second one would fight the first without end. It decides nothing else,
//! and other VNIs, networks and files run side by side.
//!
//! What lives in the kernel is locked by an abstract unix address: it belongs to the same network namespace as the
//! objects do, and it is gone the moment its owner is, however that ends.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use ipnet::IpNet;
use plan::backend::Backend;
use plan::input::{Config, Family};

/// What is locked, for as long as this value lives.
#[derive(Default)]
pub(crate) struct Locks {
    file: Option<File>,
    names: Vec<(String, UnixDatagram)>,
}

impl Locks {
    /// Takes the subnet file, before anything is read from it or written beside it.
    pub(crate) fn take_file(&mut self, subnet_file: &Path) -> anyhow::Result<()> {
        let path = lock_file(subnet_file);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).with_context(|| no_place(dir))?;
        }
        let file = File::create(&path).with_context(|| no_place(&path))?;
        match lock_soon(&file) {
            Ok(()) => self.file = Some(file),
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "another daemon writes {}: stop it, or give this one another --subnet-file",
                    subnet_file.display()
                )
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).context(format!("locking {}", path.display()));
            }
        }
        Ok(())
    }

    /// Takes what a config makes ours in the kernel; what an earlier one did stays until `keep_vnis`.
    pub(crate) fn take_config(&mut self, config: &Config) -> anyhow::Result<()> {
        for network in Family::ALL.into_iter().filter_map(|family| config.network(family)) {
            if let Some(other) = self.overlapping(&network)? {
                bail!(
                    "another daemon of this node has network {other}, which overlaps {network}: give one of them another Network"
                );
            }
            self.take(&format!("{NETWORK}{network}"), "Network")?;
        }
        match &config.backend {
            Backend::Vxlan(options) => self.take(&vni_name(options.vni), "VNI"),
            _ => Ok(()),
        }
    }

    /// Holds exactly these VNIs. Gives those that another daemon has.
    pub(crate) fn keep_vnis(&mut self, vnis: &[u32]) -> Vec<u32> {
        let names: Vec<String> = vnis.iter().map(|vni| vni_name(*vni)).collect();
        self.names.retain(|(held, _)| !held.starts_with(VNI) || names.contains(held));
        vnis.iter().copied().filter(|vni| self.take(&vni_name(*vni), "VNI").is_err()).collect()
    }

    /// Takes flannel's tables and chains for traffic rules, which are there once; no error, since all else may go on.
    pub(crate) fn keep_firewall(&mut self) -> bool {
        self.take(FIREWALL, "node").is_ok()
    }

    /// Does another daemon have that VNI?
    pub(crate) fn is_others_vni(&self, vni: u32) -> bool {
        let name = vni_name(vni);
        !self.names.iter().any(|(held, _)| *held == name)
            && bind(&name).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    }

    /// A network of another daemon that shares addresses with ours.
    fn overlapping(&self, network: &IpNet) -> anyhow::Result<Option<IpNet>> {
        let sockets = fs::read_to_string("/proc/net/unix").context("listing unix sockets")?;
        let prefix = format!("@{PREFIX}{NETWORK}");
        let names =
            sockets.lines().filter_map(|line| line.split_once(&prefix)).map(|(_, network)| network.trim());
        let held = |other: &IpNet| self.names.iter().any(|(name, _)| *name == format!("{NETWORK}{other}"));
        let mut others = names.filter_map(|name| name.parse::<IpNet>().ok()).filter(|other| !held(other));
        Ok(others.find(|other| other.contains(network) || network.contains(other)))
    }

    fn take(&mut self, name: &str, key: &str) -> anyhow::Result<()> {
        if self.names.iter().any(|(held, _)| held == name) {
            return Ok(());
        }
        let lock = bind(name).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                anyhow!("another daemon of this node has {name}: stop it, or give one of them another {key}")
            }
            _ => anyhow::Error::new(error).context(format!("locking {name}")),
        })?;
        self.names.push((name.to_owned(), lock));
        Ok(())
    }
}

/// A daemon that was killed holds it until the tool that it was about to start has begun.
fn lock_soon(file: &File) -> Result<(), TryLockError> {
    let end = Instant::now() + PASSING;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(PASSING / 20),
            done => return done,
        }
    }
}

/// The file that is locked for it.
pub(crate) fn lock_file(subnet_file: &Path) -> PathBuf {
    subnet_file.with_file_name(format!(".{}.lock", subnet_file.file_name().unwrap_or_default().display()))
}

fn no_place(path: &Path) -> String {
    format!("creating {}, name a writable place with --subnet-file", path.display())
}

/// Whoever holds a lock for longer means it.
const PASSING: Duration = Duration::from_secs(1);
/// How the addresses begin.
const PREFIX: &str = "twill ";
const NETWORK: &str = "network ";
const VNI: &str = "VNI ";
const FIREWALL: &str = "traffic rules";

fn vni_name(vni: u32) -> String {
    format!("{VNI}{vni}")
}

fn bind(name: &str) -> io::Result<UnixDatagram> {
    UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(format!("{PREFIX}{name}"))?)
}
