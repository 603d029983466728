//! Runs one parser under libFuzzer: `FUZZ=net-conf twill-fuzz corpus/net-conf`. A panic is a finding.
#![no_main]

#[path = "../../crates/store/src/etcd/der.rs"]
mod der;

use std::sync::LazyLock;

use libfuzzer_sys::{Corpus, fuzz_target};
use plan::lease::Lease;
use plan::netconf::NetConf;
use plan::subnet_env;
use plan::text::printed;

/// A parser, by the name that `scripts/fuzz` has for it.
type Target = (&'static str, fn(&[u8]));

/// Every parser of data from outside, except for PEM files, sysctls and variables of the environment. Annotations of
/// Kubernetes and the input of a CNI plugin have no parser yet, because there is no Kubernetes mode and no CNI plugin.
const TARGETS: [Target; 14] = [
    ("net-conf", |bytes| {
        if let Err(error) = NetConf::parse(bytes) {
            let _ = printed(error);
        }
    }),
    ("lease", lease),
    ("subnet-env", |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let _ = (subnet_env::previous_subnet(&text), subnet_env::networks(&text));
        daemon::fuzz::env_file(&text);
    }),
    ("options-env", |bytes| daemon::fuzz::options_file(&String::from_utf8_lossy(bytes))),
    ("cache", daemon::fuzz::cache),
    ("answer", daemon::fuzz::answer),
    ("netlink", kernel::fuzz::netlink),
    ("nf-tables", kernel::fuzz::nftables),
    ("nft", |bytes| kernel::fuzz::nft(&String::from_utf8_lossy(bytes))),
    ("iptables", |bytes| kernel::fuzz::iptables(&String::from_utf8_lossy(bytes))),
    ("names", |bytes| {
        let names = kernel::fuzz::unix(&String::from_utf8_lossy(bytes));
        names.iter().for_each(|name| daemon::fuzz::name(name));
    }),
    ("certificate", certificate),
    ("frame", daemon::fuzz::frame),
    ("request", daemon::fuzz::request),
];

/// The key of a lease, a line break, and its value. A lease that is written and read again is the same.
fn lease(bytes: &[u8]) {
    let at = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let (key, value) = bytes.split_at(at);
    match Lease::parse(&String::from_utf8_lossy(key), value.get(1..).unwrap_or_default(), 1) {
        Ok(lease) => {
            let again = Lease::parse(&lease.subnet.to_string(), lease.to_json().as_bytes(), 1);
            assert_eq!(again.as_ref().map(Lease::to_json), Ok(lease.to_json()));
        }
        Err(error) => drop(printed(error)),
    }
}

/// The certificate of an etcd server.
fn certificate(bytes: &[u8]) {
    const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
    let Some(certificate) = der::Certificate::parse(bytes) else { return };
    let _ = (certificate.signed, certificate.algorithm, certificate.signature, certificate.is_authority());
    let purposes = certificate.extension(EXTENDED_KEY_USAGE).unwrap_or_default();
    let _ = der::items(purposes).count();
}

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("FUZZ").unwrap_or_default();
    let target = TARGETS.into_iter().find(|(known, _)| *known == name);
    let names = TARGETS.map(|(name, _)| name).join(", ");
    target.unwrap_or_else(|| panic!("FUZZ is {name:?} and must be one of {names}")).1
});

fuzz_target!(|bytes: &[u8]| -> Corpus {
    (*TARGET)(bytes);
    Corpus::Keep
});
