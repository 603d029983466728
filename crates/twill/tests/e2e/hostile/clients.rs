//! Clients of the port or the socket that hold connections and send nothing, or open as many as they can.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::{HEALTHZ_PORT, Lab, Ns, Timing, Topology};

use super::Watch;
use crate::cluster::{self, SOON, VXLAN_DUAL};
use crate::traffic::of_node;

/// Number of threads that flood the port with connections.
const FLOODERS: usize = 16;
/// Maximum share of a core that the flood may cost. The tests run a build without optimization.
const FLOOD_CPU: f64 = 0.4;
const OPEN: &[&str] = &["--healthz-ip=::"];

/// Opens up to `count` connections that send nothing.
fn idle(from: &Ns, to: IpAddr, count: usize) -> Vec<TcpStream> {
    let address = SocketAddr::from((to, HEALTHZ_PORT));
    from.within(|| {
        (0..count).filter_map(|_| TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()).collect()
    })
}

fn get(from: &Ns, to: IpAddr) -> bool {
    let to = if to.is_ipv6() { format!("[{to}]") } else { to.to_string() };
    let ask = format!(
        "exec 3<>/dev/tcp/{}/{HEALTHZ_PORT}; printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3; timeout 2 head -c 12 <&3",
        to.trim_matches(['[', ']'])
    );
    let out = from.command("bash").args(["-c", &ask]).output().unwrap();
    String::from_utf8_lossy(&out.stdout).contains("200")
}

fn start(lab: &Lab) -> (Vec<lab::Daemon<'_>>, Vec<lab::Pod>) {
    let (daemons, pods) = cluster::start_with(lab, OPEN);
    cluster::reach_each_other(&pods);
    (daemons, pods)
}

#[test]
fn idle_connections_of_a_pod_do_not_block_other_clients() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(3), VXLAN_DUAL);
        let (daemons, pods) = start(&lab);
        let node = lab.node(1);
        let watch = Watch::begin("idle", node, &daemons[0], Some((&pods[0], &pods[2])));
        for ip in of_node(node) {
            let begun = Instant::now();
            let mut held = Vec::new();
            // The attacker connects again as soon as it is disconnected.
            while begun.elapsed() < Duration::from_secs(4) {
                held.extend(idle(&pods[0].ns, ip, 10));
                watch.is_quick(lab.node(2));
                assert!(get(&node.ns, ip), "the node itself, at {ip}");
                assert!(get(&lab.node(3).ns, ip), "another machine, at {ip}");
                // A single address may open 20 connections a second.
                lab::until(Duration::from_millis(100), || None::<()>);
            }
            println!("{} connections to {ip}", held.len());
        }
        watch.end();
    });
}

#[test]
fn idle_connections_of_a_local_user_do_not_block_other_clients() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(3), VXLAN_DUAL);
        let (daemons, pods) = start(&lab);
        let node = lab.node(1);
        let watch = Watch::begin("local", node, &daemons[0], Some((&pods[0], &pods[2])));
        let _held = idle(&node.ns, "127.0.0.1".parse().unwrap(), 300);
        watch.is_quick(lab.node(2));
        let socket = node.run_dir().join("twill.sock");
        let _more: Vec<_> = (0..300).filter_map(|_| UnixStream::connect(&socket).ok()).collect();
        let begun = Instant::now();
        assert!(node.twill(&["status"]).contains("ready"));
        assert!(begun.elapsed() < lab::patient(Duration::from_secs(1)), "status took {:?}", begun.elapsed());
        watch.is_quick(lab.node(2));
        watch.end();
    });
}

/// A client that sends nothing is disconnected within two seconds, on the port and on the socket.
#[test]
fn a_silent_client_is_disconnected_soon() {
    lab::test(Timing::Timed, || {
        use std::io::{Read, Write};
        let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
        let (_daemons, pods) = start(&lab);
        let node = lab.node(1);
        let limit = lab::patient(Duration::from_secs(3));
        for mut stream in idle(&pods[0].ns, node.ip.into(), 3) {
            stream.set_read_timeout(Some(limit)).unwrap();
            // A byte now and then does not make a header either.
            let _ = stream.write_all(b"GET / HT");
            assert!(
                !matches!(stream.read(&mut [0; 64]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
            );
        }
        let mut stream = UnixStream::connect(node.run_dir().join("twill.sock")).unwrap();
        stream.set_read_timeout(Some(limit)).unwrap();
        assert!(
            !matches!(stream.read(&mut [0; 64]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        );
    });
}

/// Pods reach other nodes with their own node's address, so the first node cannot tell this pod from its node.
#[test]
fn a_pod_that_connects_often_leaves_an_answer_to_its_node() {
    lab::test(Timing::Timed, || {
        let lab = cluster::lab(Topology::flat(2), VXLAN_DUAL);
        let (_daemons, pods) = cluster::start_with(&lab, &[OPEN, &["--ip-masq"]].concat());
        cluster::reach_each_other(&pods);
        let (node, other) = (lab.node(1), lab.node(2));
        let (ip, over) = (node.ip, Arc::new(AtomicBool::new(false)));
        let stop = Arc::clone(&over);
        let loops = pods[1].ns.thread(move || {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                count += usize::from(TcpStream::connect((ip, HEALTHZ_PORT)).is_ok());
                // About 200 a second: ten times as many as one address may open with full service.
                std::thread::sleep(Duration::from_millis(5));
            }
            count
        });
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(4) {
            assert!(get(&other.ns, ip.into()), "after {:?}", begun.elapsed());
            lab::until(Duration::from_millis(50), || None::<()>);
        }
        over.store(true, Ordering::Relaxed);
        let count = loops.join().unwrap();
        assert!(count > 200, "only {count} connections: no attack");
    });
}

#[test]
fn a_flood_of_connections_leaves_the_daemon_responsive() {
    lab::test(Timing::Timed, || flooded(IpAddr::is_ipv4));
}

#[test]
fn a_flood_of_connections_over_ipv6_leaves_the_daemon_responsive() {
    lab::test(Timing::Timed, || flooded(IpAddr::is_ipv6));
}

fn flooded(family: fn(&IpAddr) -> bool) {
    let lab = cluster::lab(Topology::flat(3), VXLAN_DUAL);
    let (daemons, pods) = start(&lab);
    let node = lab.node(1);
    let ip = of_node(node).into_iter().find(family).unwrap();
    let watch = Watch::begin("flood", node, &daemons[0], Some((&pods[0], &pods[2])));
    let (to, span) = (SocketAddr::from((ip, HEALTHZ_PORT)), Duration::from_secs(5));
    let flood: Vec<_> = (0..FLOODERS).map(|_| pods[0].ns.thread(move || flood(to, span))).collect();
    let cpu = daemons[0].cpu();
    let begun = Instant::now();
    while begun.elapsed() < span {
        watch.is_quick(lab.node(2));
        assert!(get(&lab.node(3).ns, ip), "another machine, after {:?}", begun.elapsed());
        lab::until(Duration::from_millis(200), || None::<()>);
    }
    let spent = daemons[0].cpu() - cpu;
    let flood = flood.into_iter().map(|flooder| flooder.join().unwrap());
    let [tried, open] = flood.fold([0, 0], |[a, b], [c, d]| [a + c, b + d]);
    println!("{tried} connections to {ip}, {open} of them accepted, cost {spent:?} in {span:?}");
    assert!(open > 1000 && tried > open + 500, "no flood");
    assert!(spent < lab::patient(span.mul_f64(FLOOD_CPU)), "{spent:?}");
    lab::wait_for("nothing lasts of it", SOON, || node.get("/readyz").unwrap().status == 200);
    watch.end();
}

/// Opens connections one after the other, as many as it can. Returns how many it tried to open, and how many were accepted.
fn flood(to: SocketAddr, span: Duration) -> [usize; 2] {
    use std::io::{Read, Write};
    let begun = Instant::now();
    let mut count = [0; 2];
    while begun.elapsed() < span {
        count[0] += 1;
        // An attacker does not wait until the kernel repeats the request.
        let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_millis(20)) else { continue };
        count[1] += 1;
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let _ = stream.read(&mut [0; 16]);
    }
    count
}
