//! A storm of kernel events that do not concern twill: neighbour changes on a device of its own.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::node::Node;

/// Time between two batches of changes.
const SLICE: Duration = Duration::from_millis(50);

/// A running storm.
#[derive(Debug)]
pub struct Storm {
    worker: JoinHandle<u64>,
    start: Instant,
}

impl Storm {
    /// Makes `per_second` neighbour changes a second for `span`, on a device of its own on `node`.
    pub fn start(node: &Node, per_second: u32, span: Duration) -> Self {
        let lines = "link add storm0 type veth peer name storm1\nlink set storm1 up\nlink set storm0 up\n";
        if !node.ns.output("ip link show storm0").status.success() {
            node.ns.batch(lines);
        }
        let mut command = node.ns.command("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped());
        let start = Instant::now();
        let worker = thread::spawn(move || {
            let mut child = command.spawn().expect("nsenter starts");
            let mut stdin = child.stdin.take().expect("a pipe was asked for");
            let mut sent = 0;
            while start.elapsed() < span {
                let due = (start.elapsed() + SLICE).min(span).as_secs_f64() * f64::from(per_second);
                let lines = (sent..due as u64).fold(String::new(), |lines, nth| lines + &change(nth));
                sent = sent.max(due as u64);
                stdin.write_all(lines.as_bytes()).expect("ip reads on");
                // The sleep sets the storm's pace; it does not wait for anything.
                thread::sleep(SLICE);
            }
            drop(stdin);
            let status = child.wait().expect("ip ends");
            assert!(status.success(), "the storm's ip -batch failed");
            sent
        });
        Self { worker, start }
    }

    /// Waits for the end. Returns the number of changes and the time since the start.
    pub fn finish(self) -> (u64, Duration) {
        let sent = self.worker.join().expect("the storm blows to its end");
        (sent, self.start.elapsed())
    }
}

/// Returns change number `nth`: 100 neighbours get a new MAC in each turn.
fn change(nth: u64) -> String {
    let (host, turn) = (nth % 100 + 1, nth / 100 % 256);
    let mut line = String::new();
    let _ = writeln!(
        line,
        "neighbour replace 198.18.0.{host} lladdr 02:00:00:00:57:{turn:02x} dev storm0 nud reachable"
    );
    line
}
