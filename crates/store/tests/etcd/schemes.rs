//! Tests of wrong endpoints and configs: each gets an error with a hint.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use store::{Choice, Etcd};

use crate::{CONFIG, Server, block_on, claim};

fn refusal(server: &Server, endpoint: String) -> String {
    block_on(Etcd::new(server.options(vec![endpoint])).net_conf()).unwrap_err().to_string()
}

#[test]
fn a_scheme_that_is_not_the_server_s_is_told() {
    let tls = Server::start_in(tempfile::tempdir().unwrap(), "https", &["--auto-tls"]);
    let error = refusal(&tls, tls.url().replace("https:", "http:"));
    assert!(error.contains("write https:// in --etcd-endpoints"), "{error}");
    // An endpoint without a scheme means http.
    let error = refusal(&tls, tls.url().replace("https://", ""));
    assert!(error.contains("write https:// in --etcd-endpoints"), "{error}");
    let plain = Server::start();
    let error = refusal(&plain, plain.url().replace("http:", "https:"));
    assert!(error.contains("write http:// in --etcd-endpoints"), "{error}");
    let error = refusal(&plain, plain.url().replace("http:", "unix:"));
    assert!(error.contains("neither http nor https"), "{error}");
}

/// A server that is not etcd is reported with its address.
#[test]
fn another_server_on_the_port_is_no_etcd() {
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
    let error = refusal(&plain, format!("https://{at}"));
    assert!(error.contains("write http:// in --etcd-endpoints"), "{error}");
    let error = refusal(&plain, format!("http://{at}"));
    assert!(error.contains(&at.to_string()) && !error.contains("https://"), "{error}");
}

#[test]
fn a_config_that_is_not_there_is_told_with_how_it_may_have_been_written() {
    let server = Server::start();
    server.ctl(&["del", "/coreos.com/network/config"]);
    let error = refusal(&server, server.url());
    assert!(error.contains("no key /coreos.com/network/config"), "{error}");
    assert!(error.contains("ETCDCTL_API=3"), "{error}");
}

#[test]
fn a_user_is_not_needed_where_etcd_knows_none() {
    let server = Server::start();
    let mut options = server.options(vec![server.url()]);
    (options.username, options.password) = ("u".into(), "p".into());
    block_on(async {
        let etcd = Etcd::new(options);
        etcd.net_conf().await.unwrap();
        etcd.acquire(&claim(1, Choice::Any { dice: 0 })).await.unwrap();
    });
}

#[test]
fn an_etcd_that_is_full_is_told_with_what_to_do() {
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
            let error = etcd.acquire(&claim(1, Choice::Any { dice: 0 })).await.unwrap_err().to_string();
            if error.contains("compact and defragment it, then disarm the alarm") {
                break;
            }
            patient(error);
        }
    });
}
