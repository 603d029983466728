//! Daemons, pods and traffic between them. A shell script stands in for the daemon, and a route is set by hand.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use lab::{HEALTHZ_PORT, Lab, Timing, Topology, Traffic};

const DAEMON: &str = r#"#!/bin/sh
trap 'exit 7' TERM
n=$(ip -o -4 addr show dev eth0 | sed 's/.*192.168.10[01].1\([0-9]*\).*/\1/')
echo "$@"
printf 'FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.%s.1/24\n' $n > /run/flannel/new
printf 'FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:%s::1/64\n' $n >> /run/flannel/new
printf 'FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n' >> /run/flannel/new
mv /run/flannel/new /run/flannel/subnet.env
[ "$1" = status ] && exit
while :; do sleep 0.05; done
"#;

fn lab_of_two() -> Lab {
    let path: PathBuf = lab::enter::work_dir().join("daemon.sh");
    fs::write(&path, DAEMON).expect("the script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    Topology::flat(2).twill(path).build()
}

#[test]
fn pods_reach_each_other_once_there_is_a_route() {
    lab::test(Timing::Free, || {
        let lab = lab_of_two();
        let _daemons = [lab.node(1).start(&["--iface=eth0"]), lab.node(2).start(&["--iface=eth0"])];
        let (one, other) = (lab.node(1).pod(), lab.node(2).pod());
        let second = lab.node(1).pod();
        assert_eq!((one.name.as_str(), second.name.as_str()), ("pod1", "pod1b"));
        assert_eq!(one.ip().to_string(), "10.244.1.2");
        assert_eq!(second.ips().last().expect("two addresses").to_string(), "fd00:244:0:1::3");
        assert!(one.ping(second.ip()).is_some());
        assert!(one.ping(other.ip()).is_none(), "no route yet");
        let report = Traffic::start(&one, &other, 2, Duration::from_secs(1)).finish();
        assert!(report.failed > 0 && report.made == 0, "{report:?}");
        assert_eq!(lab.node(2).subnet(), "10.244.2.0/24");
        assert_eq!(
            lab.node(2).subnet_env().and_then(|env| env.subnet6()).as_deref(),
            Some("fd00:244:0:2::/64")
        );
        for (at, to) in [(1, 2), (2, 1)] {
            let via = lab.node(to);
            lab.node(at).ns.run(&format!("ip route add 10.244.{to}.0/24 via {}", via.ip));
            lab.node(at).ns.run(&format!("ip route add fd00:244:0:{to}::/64 via {}", via.ip6));
        }
        assert!(one.reaches(other.ip(), Duration::from_secs(2)).is_some());
        assert!(one.ips().zip(other.ips()).all(|(_, to)| one.reaches(to, Duration::from_secs(2)).is_some()));
        for place in [&one.ns, &lab.node(1).ns] {
            let links = place.run("ip -o link");
            let cables = links.lines().filter(|line| line.contains("veth") || line.contains("cni0"));
            assert!(cables.clone().all(|line| line.contains("mtu 1450")), "{links}");
        }
        assert!(one.ns.run("ip -o link show eth0").contains("mtu 1450"));
        let report = Traffic::start(&one, &other, 200, Duration::from_secs(2)).finish();
        assert!(report.failed == 0 && (300..=401).contains(&report.made), "{report:?}");
    });
}

#[test]
fn a_daemon_process_starts_stops_and_restarts() {
    lab::test(Timing::Free, || {
        let lab = lab_of_two();
        let mut daemon = lab.node(1).start(&["--iface=eth0"]);
        lab.node(1).subnet();
        let store = lab.store.path().display();
        let cache = lab.node(1).cache_dir().display();
        let said = format!(
            "daemon --cache-dir {cache} --store={store} --healthz-ip=127.0.0.1 --healthz-port=8081 --iface=eth0\n"
        );
        assert_eq!(daemon.log(), said);
        assert!(lab.node(2).subnet_env().is_none(), "each node has a /run/flannel of its own");
        assert!(daemon.is_alive() && daemon.rss() > 100_000 && daemon.cpu() > Duration::ZERO);
        let name = fs::read_to_string(format!("/proc/{}/comm", daemon.pid())).expect("comm");
        assert_eq!(name.trim(), "daemon.sh");
        assert_eq!(daemon.terminate().code(), Some(7));
        assert!(!daemon.is_alive());
        daemon.restart();
        assert!(daemon.is_alive());
        daemon.kill9();
        assert!(!daemon.is_alive());
        assert_eq!(lab.node(2).twill(&["status", "--json"]), "status --json\n");
        assert!(lab.node(2).subnet_env().is_some(), "commands see the node's /run/flannel");
    });
}

#[test]
fn readiness_is_queried_inside_the_node() {
    lab::test(Timing::Free, || {
        let lab = lab_of_two();
        let daemon = lab.node(1).start(&[]);
        assert!(lab.node(1).get("/readyz").is_none(), "nobody listens");
        let listener =
            lab.node(1).ns.within(|| TcpListener::bind(("127.0.0.1", HEALTHZ_PORT)).expect("bind"));
        let server = std::thread::spawn(move || {
            for answer in ["503 Not Ready", "200 OK", "200 OK"] {
                let (mut stream, _) = listener.accept().expect("accept");
                let _ = stream.read(&mut [0; 1024]);
                write!(stream, "HTTP/1.1 {answer}\r\nConnection: close\r\n\r\nhello").expect("answer");
            }
        });
        daemon.wait_ready();
        assert_eq!(lab.node(1).get("/readyz").expect("an answer").body, "hello");
        server.join().expect("all were asked");
    });
}

#[test]
#[should_panic(expected = "failed in the lab")]
fn a_daemon_that_exits_is_never_ready() {
    lab::test_within(Duration::from_secs(10), Timing::Free, || {
        Topology::flat(1).twill("/bin/false").build().node(1).start(&[]).wait_ready();
    });
}

#[test]
fn the_store_directory_holds_config_and_leases() {
    lab::test(Timing::Free, || {
        let lab = Topology::flat(1).build();
        lab.store.config(r#"{"Network":"10.244.0.0/16"}"#);
        lab.store.put_lease("10.244.9.0-24", "{}");
        assert_eq!(
            lab.store.leases().into_iter().collect::<Vec<_>>(),
            [("10.244.9.0-24".into(), "{}".into())]
        );
        assert!(lab.store.path().join("config").exists());
        lab.store.remove_lease("10.244.9.0-24");
        assert!(lab.store.leases().is_empty());
    });
}
