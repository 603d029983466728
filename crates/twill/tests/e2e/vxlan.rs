//! vxlan between real nodes.

use std::time::Duration;

#[test]
fn pods_reach_each_other() {
    lab::test(lab::Timing::Free, || {
        let lab = lab::Topology::flat(3).twill(env!("CARGO_BIN_EXE_twill")).build();
        lab.store.config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#);
        let daemons = lab.start_all(&["--iface=eth0"]);
        let pods = lab.pods();
        assert!(pods[0].reaches(pods[1].ip(), Duration::from_secs(5)).is_some());
        println!("{}", lab.node(1).twill(&["status"]));
        println!("{}", lab.node(1).ns.run("ip route; bridge fdb show dev flannel.1; ip neigh show dev flannel.1; ip -d link show flannel.1"));
        println!("{}", daemons[0].log());
        println!("{}", lab.node(1).get("/readyz").unwrap().body);
        println!("{}", lab.node(1).get("/metrics").unwrap().body);
    });
}
