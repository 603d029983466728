//! Runs `ip monitor` and `bridge monitor` on one node. The time of a kernel change is the time when its line was
//! read.

use std::time::{Duration, Instant};

use lab::{Line, Lines, Node, until};

const ANSWER: Duration = Duration::from_secs(5);
const REPEAT: Duration = Duration::from_millis(100);

pub(super) struct ChangeMonitor {
    ip: Lines,
    bridge: Lines,
}

impl ChangeMonitor {
    /// Starts both and returns once each has shown that it receives events.
    pub(super) fn start(node: &Node) -> Result<Self, String> {
        let start = |program: &str, args: &[&str]| {
            let mut command = node.ns.command(program);
            command.args(args);
            Lines::start(command)
        };
        let monitor = Self {
            ip: start("ip", &["-o", "monitor", "route", "nexthop"]),
            bridge: start("bridge", &["-o", "monitor", "fdb"]),
        };
        let (route, mac) = ("192.0.2.0/24", "02:00:00:fe:fe:fe");
        let ready = until(ANSWER, || {
            node.ns.run(&format!(
                "ip route add {route} dev lo; ip route del {route} dev lo; \
                 bridge fdb add {mac} dev eth0; bridge fdb del {mac} dev eth0"
            ));
            let found = |lines: &Lines, what: &str| lines.wait_for(REPEAT, |line| line.contains(what));
            (found(&monitor.ip, route) && found(&monitor.bridge, mac)).then_some(())
        });
        ready.map(|()| monitor).ok_or_else(|| format!("{}: a monitor receives no events", node.name))
    }

    /// Returns the time when one of them reported `what`; waits up to `limit`.
    pub(super) fn wait_for(&self, what: &str, limit: Duration) -> Option<Instant> {
        let found = |lines: &Lines| Some(lines.all().iter().find(|line| line.text.contains(what))?.at);
        until(limit, || found(&self.ip).or_else(|| found(&self.bridge)))
    }

    /// Returns all lines about routes and next hops.
    pub(super) fn routes(&self) -> Vec<Line> {
        self.ip.all()
    }
}
