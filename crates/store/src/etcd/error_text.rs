//! Texts of etcd's errors with advice: what was refused and what to do about it.

use std::error::Error as Reason;

use etcd_client::{Error, WatchResponse};
use plan::text::excerpt;
use tonic::Code;

/// Advice in one sentence, without a full stop.
type Advice = &'static str;

/// Parts of error texts, and the advice for each.
const KNOWN: [(&str, Advice); 32] = [
    ("user name is empty", "It wants a user: give --etcd-username and --etcd-password"),
    ("invalid user ID or password", "Correct --etcd-username and --etcd-password"),
    (
        "permission denied",
        "Grant this user the role of docs/reference/etcd.md: read from <prefix>/config to <prefix>/subnets0, readwrite \
         with prefix <prefix>/subnets/",
    ),
    ("database space exceeded", FULL),
    ("NOSPACE", FULL),
    ("no leader", "Most of its members are away"),
    ("etcdserver: request timed out", "It has no leader, or its disk or network is too slow"),
    ("too many requests", "etcd is overloaded: look at its disk and CPU"),
    ("etcdserver: corrupt", "A member of etcd has lost data: see etcd's log, and replace that member"),
    ("rpc not supported for learner", "It is a learner: name voting members in --etcd-endpoints"),
    ("mapped from HTTP status", "Is it etcd's client port (2379), and not that of its peers (2380)?"),
    ("unknown service etcdserverpb", "It does not serve etcd's v3 interface: use etcd 3.4 or newer"),
    (
        "UnknownIssuer",
        "Give the CA that its certificate is signed with, or the certificate itself: --etcd-cafile",
    ),
    ("certificate expired", "Renew its certificate, or correct this node's clock"),
    ("certificate not valid yet", "Correct this node's clock, or that of the certificate's issuer"),
    ("not valid for name", NAME),
    ("NotValidForName", NAME),
    (
        "UnsupportedCertVersion",
        "It is a certificate of version 1, which names no hosts: issue one with subjectAltName",
    ),
    ("InvalidPurpose", PURPOSE),
    ("extended key usage for", PURPOSE),
    ("UnsupportedSignatureAlgorithm", "Issue it with SHA-256 and a key of RSA 2048, P-256 or better"),
    ("an RSA key of", "Make a key of RSA 2048, P-256 or better, and issue the certificate again"),
    ("BadSignature", "It was not signed by the CA of that name in --etcd-cafile: is that an older CA?"),
    ("CertificateRequired", "It wants a certificate: give --etcd-certfile and --etcd-keyfile"),
    ("BadCertificate", CLIENT),
    ("UnknownCA", CLIENT),
    ("UnsupportedCertificate", CLIENT),
    ("CertificateExpired", "Renew the certificate of --etcd-certfile, or correct the clocks"),
    ("CertificateUnknown", CLIENT),
    ("DecryptError", CLIENT),
    ("HandshakeFailure", VERSIONS),
    ("ProtocolVersion", VERSIONS),
];
const FULL: Advice = "etcd is full: compact and defragment it, then disarm the alarm (etcdctl alarm disarm), or raise \
                      --quota-backend-bytes";
const NAME: Advice = "Issue a certificate whose subjectAltName has that host or address, or name etcd by one that it has: a \
                      common name does not count";
const PURPOSE: Advice = "Issue it with serverAuth in its extended key usage";
const CLIENT: Advice = "It refuses the certificate of --etcd-certfile: is it signed by the CA of etcd's --trusted-ca-file, \
                        with clientAuth in its extended key usage?";
const VERSIONS: Advice = "It has no version of TLS or cipher suite in common with this client, which wants TLS 1.2 with ECDHE \
                          and AEAD, or 1.3";

/// Returns the innermost reason of an error, with advice if there is any.
pub(super) fn describe(error: &Error) -> String {
    with_advice(match error {
        Error::GRpcStatus(status) => innermost(status.message(), status.source()),
        Error::TransportError(error) => transport(error),
        other => other.to_string(),
    })
}

/// Returns true if a reply was larger than this client or a proxy accepts.
pub(super) fn is_too_large(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else { return false };
    let says = |words| status.message().contains(words);
    match status.code() {
        Code::OutOfRange => says("too large"),
        Code::ResourceExhausted => says("larger than max"),
        _ => false,
    }
}

/// Returns the innermost reason of a transport error; the outer layers only name themselves.
pub(super) fn transport(error: &tonic::transport::Error) -> String {
    innermost(&error.to_string(), error.source())
}

fn innermost(text: &str, mut source: Option<&(dyn Reason + 'static)>) -> String {
    let mut text = text.to_owned();
    while let Some(inner) = source {
        source = inner.source();
        let inner = inner.to_string();
        if source.is_none() && !text.contains(&inner) {
            text = inner;
        }
    }
    text
}

/// Returns an excerpt of a server's text, followed by advice if the text is known.
pub(super) fn with_advice(text: String) -> String {
    let known = KNOWN.into_iter().find(|(words, _)| text.contains(words));
    let text = excerpt(text);
    match known {
        Some((_, advice)) => format!("{text}. {advice}"),
        None => text,
    }
}

/// Returns the reason for the end of a watch, from its last message.
pub(super) fn ended(response: &WatchResponse) -> String {
    match (response.compact_revision(), response.cancel_reason()) {
        (0, "") => "it ended the watch".into(),
        (0, reason) => with_advice(format!("it ended the watch: {reason}")),
        (revision, _) => {
            format!(
                "etcd has compacted the revisions up to {revision}, which this node has not seen; reading everything \
                 again"
            )
        }
    }
}
