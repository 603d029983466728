//! Tests of the health check with etcd and with etcd's own grpc-proxy, both answering and silent.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::{LEASE, SOON, Server, block_on, etcd_command, free_port, signal, until, watched};

/// Maximum time until a silent server is noticed: 3 s of silence, 1.5 s for a reply, and some reserve.
const NOTICED: Duration = Duration::from_millis(6500);

/// An instance of etcd's grpc-proxy before a server.
struct Proxy {
    child: Child,
    port: u16,
}

impl Proxy {
    fn before(server: &Server) -> Self {
        let port = free_port();
        let at = format!("127.0.0.1:{port}");
        let mut command = etcd_command();
        command.args(["grpc-proxy", "start", "--endpoints", &server.url(), "--listen-addr", &at]);
        let child = command.args(["--advertise-client-url", &at]).spawn().unwrap();
        let end = Instant::now() + SOON;
        while std::net::TcpStream::connect(&at).is_err() {
            assert!(Instant::now() < end, "the proxy does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, port }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A load balancer before a server, which ends its connections on demand.
struct Balancer {
    at: SocketAddr,
    lines: Arc<Mutex<Vec<TcpStream>>>,
}

impl Balancer {
    fn before(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (at, port) = (listener.local_addr().unwrap(), server.port);
        let lines = Arc::<Mutex<Vec<TcpStream>>>::default();
        let all = lines.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
                }
                all.lock().unwrap().extend([near, far]);
            }
        });
        Self { at, lines }
    }

    fn cut(&self) {
        for line in self.lines.lock().unwrap().drain(..) {
            let _ = line.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn a_connection_that_ends_is_replaced_before_the_store_counts_as_lost() {
    let server = Server::start();
    let balancer = Balancer::before(&server);
    block_on(async {
        let etcd = server.etcd_of(vec![format!("http://{}", balancer.at)]);
        server.put("10.3.1.0-24", LEASE);
        let mut view = watched(&etcd);
        until(&mut view, "the lease", |view| view.leases.known().len() == 1).await;
        let mut reports = view.clone();
        let lost = tokio::spawn(async move { reports.wait_for(|view| view.lost.is_some()).await.is_ok() });
        for leases in 2..=4 {
            // Connections that end more often than once a second are reported.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            balancer.cut();
            server.put(&format!("10.3.{leases}.0-24"), LEASE);
            until(&mut view, "another lease", |view| view.leases.known().len() == leases).await;
        }
        assert!(!lost.is_finished() && view.borrow().lost.is_none());
        assert_eq!((etcd.stats().restarts(), etcd.stats().lists()), (3, 1));
    });
}

#[test]
fn a_proxy_without_progress_replies_counts_as_alive() {
    let server = Server::start();
    let mut proxy = Proxy::before(&server);
    block_on(async {
        let etcd = server.etcd_of(vec![proxy.url()]);
        server.put("10.3.1.0-24", LEASE);
        let mut view = watched(&etcd);
        until(&mut view, "the lease", |view| view.leases.known().len() == 1).await;
        let end = Instant::now() + Duration::from_secs(16);
        while Instant::now() < end {
            assert_eq!(view.borrow().lost, None);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!((etcd.stats().restarts(), etcd.stats().lists()), (0, 1));
        assert!(etcd.stats().age().unwrap() < Duration::from_secs(5));
        server.put("10.3.2.0-24", LEASE);
        until(&mut view, "the watch is alive", |view| view.leases.known().len() == 2).await;
        assert!(proxy.child.try_wait().unwrap().is_none(), "the proxy has ended");
    });
}

#[test]
fn a_mute_server_behind_a_proxy_is_noticed() {
    let server = Server::start();
    let proxy = Proxy::before(&server);
    block_on(async {
        let (direct, by_proxy) = (server.etcd(), server.etcd_of(vec![proxy.url()]));
        let mut views = [watched(&direct), watched(&by_proxy)];
        for view in &mut views {
            until(view, "the store answers", |view| view.conf.is_some()).await;
        }
        server.signal("STOP");
        let begun = Instant::now();
        for view in &mut views {
            let lost = until(view, "lost", |view| view.lost.is_some()).await.lost.unwrap();
            assert!(lost.contains("no answer within 1.5 s"), "{lost}");
            assert!(begun.elapsed() < NOTICED, "{:?}", begun.elapsed());
        }
        server.signal("CONT");
        for view in &mut views {
            until(view, "back", |view| view.lost.is_none()).await;
        }
        signal(&proxy.child, "STOP");
        let begun = Instant::now();
        until(&mut views[1], "the proxy is mute", |view| view.lost.is_some()).await;
        assert!(begun.elapsed() < NOTICED && views[0].borrow().lost.is_none(), "{:?}", begun.elapsed());
        signal(&proxy.child, "CONT");
        until(&mut views[1], "back", |view| view.lost.is_none()).await;
    });
}

#[test]
fn an_etcd_that_restarts_behind_a_proxy_is_used_again() {
    let mut server = Server::start();
    let proxy = Proxy::before(&server);
    block_on(async {
        let etcd = server.etcd_of(vec![proxy.url()]);
        let mut view = watched(&etcd);
        until(&mut view, "the store answers", |view| view.conf.is_some()).await;
        server.kill();
        until(&mut view, "lost", |view| view.lost.is_some()).await;
        server.restart();
        server.put("10.3.1.0-24", LEASE);
        until(&mut view, "the store answers again", |view| {
            view.lost.is_none() && view.leases.known().len() == 1
        })
        .await;
        server.put("10.3.2.0-24", LEASE);
        until(&mut view, "and further", |view| view.leases.known().len() == 2).await;
    });
}
