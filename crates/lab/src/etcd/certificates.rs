//! Certificates of the lab's etcd, issued by openssl from an authority made for this lab alone. Only etcd and the daemon validate
//! them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{ADDRESS, ADDRESS6};

const PAST: &str = "20200101000000Z";
/// End of an expired certificate: in the past, but after `PAST`. A certificate that ends before its start is
/// malformed.
const EXPIRED: &str = "20200201000000Z";
const FUTURE: &str = "20990101000000Z";

/// A directory with `NAME.crt` and `NAME.key` of `ca`, `server` and `client`.
#[derive(Debug)]
pub(super) struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    pub(super) fn create(dir: PathBuf) -> Self {
        let made = fs::create_dir_all(&dir)
            .and_then(|()| fs::write(dir.join("openssl.cnf"), settings()))
            .and_then(|()| fs::write(dir.join("index.txt"), ""));
        made.unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let own = Self { dir };
        own.openssl(&["req", "-x509", "-extensions", "authority", "-days", "3650"], "ca", "ca.crt");
        own.issue("server", FUTURE);
        own.issue("client", FUTURE);
        own
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Replaces the server certificate by an expired one. etcd reads its certificate again for each connection.
    pub(super) fn expire_server(&self) {
        self.issue("server", EXPIRED);
    }

    pub(super) fn renew_server(&self) {
        self.issue("server", FUTURE);
    }

    fn issue(&self, name: &str, end: &str) {
        let (request, certificate) = (format!("{name}.csr"), format!("{name}.crt"));
        if !self.dir.join(&request).exists() {
            self.openssl(&["req", "-new"], name, &request);
        }
        // The file is renamed into place, because etcd may read the certificate at any time.
        let (new, last) = (self.dir.join("new.crt"), self.dir.join(certificate));
        let mut ca = Command::new("openssl");
        ca.args(["ca", "-batch", "-notext", "-config", "openssl.cnf", "-extensions", name]);
        ca.args(["-startdate", PAST, "-enddate", end, "-in", &request, "-out", "new.crt"]);
        run(&self.dir, &mut ca);
        fs::rename(&new, &last).unwrap_or_else(|e| panic!("{}: {e}", last.display()));
    }

    /// Runs an openssl command with a new key, and `name` as the subject.
    fn openssl(&self, what: &[&str], name: &str, out: &str) {
        let (key, subject) = (format!("{name}.key"), format!("/CN={name}"));
        let mut command = Command::new("openssl");
        command.args(what).args(["-config", "openssl.cnf", "-nodes", "-subj", &subject]);
        command.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", &key, "-out", out]);
        run(&self.dir, &mut command);
    }
}

fn settings() -> String {
    format!(
        "[req]\ndistinguished_name = names\n[names]\n\
         [authority]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign, cRLSign\n\
         [server]\nbasicConstraints = CA:FALSE\nsubjectAltName = IP:{ADDRESS}, IP:{ADDRESS6}, IP:127.0.0.1\n\
         extendedKeyUsage = serverAuth, clientAuth\n\
         [client]\nbasicConstraints = CA:FALSE\nextendedKeyUsage = clientAuth\n\
         [ca]\ndefault_ca = lab\n\
         [lab]\ncertificate = ca.crt\nprivate_key = ca.key\ndatabase = index.txt\nnew_certs_dir = .\nrand_serial = yes\n\
         default_md = sha256\nunique_subject = no\npolicy = policy\n[policy]\ncommonName = supplied\n"
    )
}

fn run(dir: &Path, command: &mut Command) {
    let out = command.current_dir(dir).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}
