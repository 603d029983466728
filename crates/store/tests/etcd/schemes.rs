//! Tests of wrong endpoints and configs: each gets an error with a hint.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use store::{AcceptableSubnet, Etcd};

use crate::{CONFIG, SOON, Server, block_on, claim, patiently};

fn refusal(server: &Server, endpoint: String) -> String {
    block_on(Etcd::new(server.options(vec![endpoint])).net_conf()).unwrap_err().to_string()
}

/// Asserts that the error of a connection to the endpoint has this hint. On a busy machine the server's answer may come too late
/// for the first error, and the daemon tries again.
fn has_hint(server: &Server, endpoint: &str, hint: &str) {
    let end = Instant::now() + SOON;
    loop {
        let error = refusal(server, endpoint.to_owned());
        if error.contains(hint) {
            return;
        }
        assert!(Instant::now() < end, "{endpoint}: {error}");
    }
}

#[test]
fn a_wrong_scheme_is_reported() {
    let tls = Server::start_in(tempfile::tempdir().unwrap(), "https", &["--auto-tls"]);
    has_hint(&tls, &tls.url().replace("https:", "http:"), "write https:// in --etcd-endpoints");
    // An endpoint without a scheme means http.
    has_hint(&tls, &tls.url().replace("https://", ""), "write https:// in --etcd-endpoints");
    let plain = Server::start();
    has_hint(&plain, &plain.url().replace("http:", "https:"), "write http:// in --etcd-endpoints");
    has_hint(&plain, &plain.url().replace("http:", "unix:"), "neither http nor https");
}

/// A server that is not etcd is reported with its address.
#[test]
fn a_server_that_is_not_etcd_is_reported() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 100]);
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let plain = Server::start();
    has_hint(&plain, &format!("https://{at}"), "write http:// in --etcd-endpoints");
    let error = refusal(&plain, format!("http://{at}"));
    assert!(error.contains(&at.to_string()) && !error.contains("https://"), "{error}");
}

#[test]
fn a_missing_config_is_reported_with_a_hint() {
    let server = Server::start();
    server.ctl(&["del", "/coreos.com/network/config"]);
    let error = refusal(&server, server.url());
    assert!(error.contains("no key /coreos.com/network/config"), "{error}");
    assert!(error.contains("ETCDCTL_API=3"), "{error}");
}

#[test]
fn a_user_is_ignored_by_an_etcd_without_authentication() {
    let server = Server::start();
    let mut options = server.options(vec![server.url()]);
    (options.username, options.password) = ("u".into(), "p".into());
    block_on(async {
        let etcd = Etcd::new(options);
        etcd.net_conf().await.unwrap();
        patiently(async || etcd.acquire(&claim(1, AcceptableSubnet::Any { dice: 0 })).await).await.unwrap();
    });
}

#[test]
fn a_full_etcd_is_reported_with_a_remedy() {
    let server = Server::start_with(&["--quota-backend-bytes=2000000"]);
    let large = "x".repeat(100_000);
    for n in 0..40 {
        let mut put = std::process::Command::new("etcdctl");
        put.env("ETCDCTL_API", "3").args([
            "--endpoints",
            &server.url(),
            "put",
            &format!("/fill/{n}"),
            &large,
        ]);
        if !put.output().unwrap().status.success() {
            break;
        }
    }
    block_on(async {
        let etcd = server.etcd();
        // On a busy machine an etcd that has just been filled may be slow to answer at all.
        let begun = Instant::now();
        let patient = |error: String| assert!(begun.elapsed() < Duration::from_secs(30), "{error}");
        while let Err(error) = etcd.net_conf().await {
            patient(format!("{CONFIG} can be read: {error}"));
        }
        loop {
            let error =
                etcd.acquire(&claim(1, AcceptableSubnet::Any { dice: 0 })).await.unwrap_err().to_string();
            if error.contains("compact and defragment it, then disarm the alarm") {
                break;
            }
            patient(error);
        }
    });
}
