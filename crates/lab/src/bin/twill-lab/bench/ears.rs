//! `ip monitor` and `bridge monitor` of one node: when the kernel took a change, to the time its line was read.

use std::time::{Duration, Instant};

use lab::{Line, Lines, Node, until};

const ANSWER: Duration = Duration::from_secs(5);
const REPEAT: Duration = Duration::from_millis(100);

pub(super) struct Ears {
    ip: Lines,
    bridge: Lines,
}

impl Ears {
    /// Returns when both have proved that they hear.
    pub(super) fn start(node: &Node) -> Result<Self, String> {
        let start = |program: &str, args: &[&str]| {
            let mut command = node.ns.command(program);
            command.args(args);
            Lines::start(command)
        };
        let ears = Self {
            ip: start("ip", &["-o", "monitor", "route", "nexthop"]),
            bridge: start("bridge", &["-o", "monitor", "fdb"]),
        };
        let (route, mac) = ("192.0.2.0/24", "02:00:00:fe:fe:fe");
        let heard = until(ANSWER, || {
            node.ns.run(&format!(
                "ip route add {route} dev lo; ip route del {route} dev lo; \
                 bridge fdb add {mac} dev eth0; bridge fdb del {mac} dev eth0"
            ));
            let told = |lines: &Lines, what: &str| lines.wait_for(REPEAT, |line| line.contains(what));
            (told(&ears.ip, route) && told(&ears.bridge, mac)).then_some(())
        });
        heard.map(|()| ears).ok_or_else(|| format!("{}: a monitor is deaf", node.name))
    }

    /// When one of both told of it, waiting for it if need be.
    pub(super) fn hear(&self, what: &str, limit: Duration) -> Option<Instant> {
        let told = |lines: &Lines| Some(lines.all().iter().find(|line| line.text.contains(what))?.at);
        until(limit, || told(&self.ip).or_else(|| told(&self.bridge)))
    }

    /// All that was said of routes and next hops.
    pub(super) fn routes(&self) -> Vec<Line> {
        self.ip.all()
    }
}
