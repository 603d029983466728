//! Reads and writes the lab's etcd with etcdctl, as an operator would. It knows flannel's keys, but not their values.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use super::{Etcd, PASSWORD, etcdctl};
use crate::wait::patient;

/// Prefix of flannel's keys.
pub(crate) const PREFIX: &str = "/coreos.com/network";
/// Maximum number of operations in one transaction, etcd's default limit.
const OPS: usize = 128;
/// Maximum time for one call of etcdctl.
const ANSWER: Duration = Duration::from_secs(2);

/// A key's value and metadata in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub value: String,
    /// Id of the attached lease; 0 if there is none.
    pub lease: i64,
    /// Revision at which the key was created.
    pub create_revision: i64,
    /// Revision of the last write.
    pub mod_revision: i64,
    /// Number of writes since the key was created.
    pub version: i64,
}

/// Time to live of a lease, granted and remaining, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttl {
    pub granted: i64,
    pub remaining: i64,
}

impl Etcd {
    /// Runs etcdctl as root and returns its output. Panics with its error message if it fails.
    pub fn ctl(&self, args: &[&str]) -> String {
        self.try_ctl(args).unwrap_or_else(|e| panic!("etcdctl {}: {e}", args.join(" ")))
    }

    /// Same as [`Self::ctl`], but returns etcdctl's error message as the error. Gives up after 2 s.
    pub fn try_ctl(&self, args: &[&str]) -> Result<String, String> {
        self.ctl_as(&self.user("root"), args, "")
    }

    /// Same as [`Self::try_ctl`], as the daemon's user, whose rights are limited.
    pub fn try_ctl_as_daemon(&self, args: &[&str]) -> Result<String, String> {
        self.ctl_as(&self.user("flannel"), args, "")
    }

    fn user(&self, name: &str) -> Vec<String> {
        if self.setup.auth { vec![format!("--user={name}:{PASSWORD}")] } else { Vec::new() }
    }

    pub(super) fn ctl_as(&self, user: &[String], args: &[&str], input: &str) -> Result<String, String> {
        let limit = patient(ANSWER).as_secs();
        let mut command = etcdctl(&self.ns);
        command.arg(format!("--endpoints={}", self.endpoint())).args(user);
        command.args([format!("--dial-timeout={limit}s"), format!("--command-timeout={limit}s")]);
        if let Some(certificates) = &self.certificates {
            // The lab's own access works with any server certificate; checking the certificate is the daemon's part.
            command
                .arg("--insecure-skip-tls-verify")
                .arg(format!("--cacert={}", certificates.path("ca.crt")));
            if self.setup.mutual {
                let (certificate, key) = (certificates.path("client.crt"), certificates.path("client.key"));
                command.args([format!("--cert={certificate}"), format!("--key={key}")]);
            }
        }
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| e.to_string())?;
        let mut stdin = child.stdin.take().expect("a pipe was asked for");
        // The error message of etcdctl says more than our broken pipe.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let out = child.wait_with_output().map_err(|e| e.to_string())?;
        let [said, complaint] =
            [&out.stdout, &out.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        if out.status.success() { Ok(said) } else { Err(format!("{}: {}", out.status, complaint.trim())) }
    }

    fn json(&self, args: &[&str]) -> Value {
        let text = self.ctl(&[args, &["-w", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("etcdctl {}: {e}: {text}", args.join(" ")))
    }

    /// Returns the current revision.
    pub fn revision(&self) -> i64 {
        number(&self.json(&["get", PREFIX])["header"], "revision")
    }

    /// Compacts the whole history, so that a watch from an older revision fails.
    pub fn compact(&self) {
        self.ctl(&["compact", "--physical", &self.revision().to_string()]);
    }

    /// Returns the value of a key, given in full, such as `/coreos.com/network/config`.
    pub fn get(&self, key: &str) -> Option<String> {
        self.entries(&[key]).into_values().next().map(|entry| entry.value)
    }

    /// Writes a key, given in full.
    pub fn put(&self, key: &str, value: &str) {
        self.ctl(&["put", "--", key, value]);
    }

    /// Deletes a key. Panics if it does not exist.
    pub fn delete(&self, key: &str) {
        assert_eq!(self.ctl(&["del", key]).trim(), "1", "etcd has no key {key}");
    }

    /// Writes many keys; thousands take about a second.
    pub fn put_all(&self, pairs: &[(String, String)]) {
        for some in pairs.chunks(OPS) {
            // The transaction compares nothing, so the parts for comparisons and for operations on failure are empty.
            let puts: String = some.iter().map(|(key, value)| put_line(key, value)).collect();
            let done = self.ctl_as(&self.user("root"), &["txn"], &format!("\n{puts}\n\n"));
            done.unwrap_or_else(|e| panic!("etcdctl txn: {e}"));
        }
    }

    /// Returns flannel's leases by the last part of the key, such as `10.244.34.0-24`.
    pub fn leases(&self) -> BTreeMap<String, Entry> {
        self.entries(&["--prefix", &format!("{PREFIX}/subnets/")])
    }

    fn entries(&self, what: &[&str]) -> BTreeMap<String, Entry> {
        let got = self.json(&[&["get"], what].concat());
        got["kvs"].as_array().into_iter().flatten().map(entry).collect()
    }

    /// Returns the time to live of a lease; `None` if it has expired or was revoked.
    pub fn ttl(&self, lease: i64) -> Option<Ttl> {
        let got = self.json(&["lease", "timetolive", &format!("{lease:x}")]);
        let (granted, remaining) = (number(&got, "granted-ttl"), number(&got, "ttl"));
        (remaining >= 0).then_some(Ttl { granted, remaining })
    }
}

/// Formats a put for `etcdctl txn`. It reads double quotes as Go does, for text the same as JSON, but misreads single quotes.
fn put_line(key: &str, value: &str) -> String {
    format!("put {} {}\n", Value::from(key), Value::from(value))
}

fn entry(kv: &Value) -> (String, Entry) {
    let text =
        |name: &str| String::from_utf8_lossy(&base64(kv[name].as_str().unwrap_or_default())).into_owned();
    let entry = Entry {
        value: text("value"),
        lease: number(kv, "lease"),
        create_revision: number(kv, "create_revision"),
        mod_revision: number(kv, "mod_revision"),
        version: number(kv, "version"),
    };
    let key = text("key");
    (key.rsplit('/').next().unwrap_or_default().to_owned(), entry)
}

/// Returns a number from etcdctl's JSON, which omits zeros.
fn number(of: &Value, name: &str) -> i64 {
    of[name].as_i64().unwrap_or_default()
}

fn base64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<_> = text.trim_end_matches('=').bytes().map(digit).collect();
    let bytes = digits.chunks(4).flat_map(|four| {
        let bits = (0..4).fold(0, |bits, n| bits << 6 | u32::from(four.get(n).copied().unwrap_or(0)));
        bits.to_be_bytes().into_iter().skip(1).take(four.len() - 1)
    });
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_text_of_every_length_is_decoded() {
        let cases = [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Pz8/fn5+Zg==", "???~~~f")];
        for (text, bytes) in cases {
            assert_eq!(base64(text), bytes.as_bytes(), "{text}");
        }
    }
}
