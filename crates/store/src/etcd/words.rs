//! etcd's refusals in words that lead somewhere: what was refused, by which server, and what to do about it.

use std::error::Error as _;

use etcd_client::{Error, WatchResponse};

/// What a person needs to know of it.
pub(super) fn why(error: &Error) -> String {
    let (mut text, mut source) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        Error::TransportError(error) => (error.to_string(), error.source()),
        other => (other.to_string(), None),
    };
    // The layers between say no more than that there are layers.
    while let Some(inner) = source {
        source = inner.source();
        let inner = inner.to_string();
        if source.is_none() && !text.contains(&inner) {
            text = inner;
        }
    }
    match advice(&text) {
        Some(advice) => format!("{text}. {advice}"),
        None => text,
    }
}

fn advice(text: &str) -> Option<&'static str> {
    let known = [
        ("user name is empty", "It wants a user: give --etcd-username and --etcd-password"),
        ("invalid user ID or password", "Correct --etcd-username and --etcd-password"),
        ("permission denied", "Grant this user reading and writing of all keys under --etcd-prefix"),
        ("UnknownIssuer", "Give the CA that its certificate is signed with: --etcd-cafile"),
        ("certificate expired", "Renew its certificate, or correct this node's clock"),
        ("CertificateRequired", "It wants a certificate: give --etcd-certfile and --etcd-keyfile"),
        ("NOSPACE", "etcd is full: compact and defragment it, then disarm the alarm"),
        ("no leader", "Most of its members are away"),
    ];
    known.into_iter().find(|(words, _)| text.contains(words)).map(|(_, advice)| advice)
}

/// Why a watch is over, by its last answer.
pub(super) fn ended(response: &WatchResponse) -> String {
    match (response.compact_revision(), response.cancel_reason()) {
        (0, "") => "it ended the watch".into(),
        (0, reason) => match advice(reason) {
            Some(advice) => format!("it ended the watch: {reason}. {advice}"),
            None => format!("it ended the watch: {reason}"),
        },
        (revision, _) => {
            format!(
                "what happened while it was not heard is forgotten up to revision {revision}; reading all anew"
            )
        }
    }
}
