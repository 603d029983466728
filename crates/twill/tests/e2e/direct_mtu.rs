//! Pods with the uplink's full MTU (`DirectMTU`): a direct peer gets packets of that size. For a peer by tunnel the node reports
//! the size that fits, as any router does.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use lab::{Pod, Timing, Topology};

use crate::cluster::{self, SOON};
use crate::verdicts::{PROVEN, goes};

const CONFIG: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.20.0","SubnetMax":"10.244.239.0","Backend":{"Type":"auto","DirectMTU":true}}"#;
const UPLINK: u32 = 1500;
const TUNNEL: u32 = UPLINK - 50;
const PORT: u16 = 4242;
/// Number of bytes sent over one connection, which needs many packets of full size.
const BYTES: usize = 1 << 20;

/// Sends one packet of `size` bytes with ping. Returns whether it was answered, and ping's output.
fn ping(from: &Pod, to: &Pod, options: &str, size: u32) -> (bool, String) {
    let out = from.ns.output(&format!("ping -n -c 1 -W 2 {options} -s {} {} 2>&1", size - 28, to.ip()));
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Returns the number of bytes that arrive over one connection.
fn sent(from: &Pod, to: &Pod) -> usize {
    let listener = to.ns.within(|| TcpListener::bind((to.ip(), PORT)).unwrap());
    let target = (to.ip(), PORT).into();
    let stream = from.ns.within(|| TcpStream::connect_timeout(&target, SOON));
    let mut stream = stream.unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    let sender = thread::spawn(move || stream.write_all(&vec![0; BYTES]));
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    assert!(read.is_ok() && sender.join().unwrap().is_ok(), "{read:?} after {} bytes", bytes.len());
    bytes.len()
}

#[test]
fn pods_have_the_uplinks_mtu_and_learn_the_tunnels() {
    lab::test(Timing::Free, || {
        let lab = cluster::lab(Topology::routed(2, 1), CONFIG);
        let (_daemons, pods) = cluster::start(&lab);
        let [pod, near, far] = &pods[..] else { unreachable!("three nodes") };
        let node = lab.node(1);
        assert_eq!((node.subnet_env().unwrap().mtu(), pod.mtu), (Some(UPLINK), UPLINK));
        goes(node, &lab.node(2).subnet(), "eth0", PROVEN);
        goes(lab.node(2), &node.subnet(), "eth0", PROVEN);
        // The frame includes its Ethernet header.
        cluster::full_size_passes(node, (pod, near), UPLINK + 14);
        assert!(pod.reaches(far.ip(), SOON).is_some());
        goes(node, &lab.node(3).subnet(), "flannel.1", SOON);
        // The path's MTU is not known yet: TCP sends segments that turn out to be too large.
        assert_eq!(sent(pod, far), BYTES);
        pod.ns.run("ip route flush cache");
        let (passed, said) = ping(pod, far, "-M do", UPLINK);
        let gateway = node.subnet().replace(".0/24", ".1");
        let reported =
            said.contains(&format!("From {gateway} ")) && said.contains(&format!("mtu = {TUNNEL}"));
        assert!(!passed && reported, "{said}");
        let learnt = pod.ns.run(&format!("ip route get {}", far.ip()));
        assert!(learnt.contains(&format!("mtu {TUNNEL} ")), "{learnt}");
        // The first packet fits, and the pod fragments the second. The node fragments the third, as for a pod that never learnt
        // the MTU.
        for (options, size) in [("-M do", TUNNEL), ("-M want", 8000), ("-M dont", UPLINK)] {
            let (passed, said) = ping(pod, far, options, size);
            assert!(passed, "{options} {size}: {said}");
        }
        assert_eq!(sent(near, far), BYTES);
    });
}
