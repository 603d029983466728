//! The demo: builds the topology, then shows each backend's kernel objects, pings, harms and repairs. Each line is printed when
//! it has happened, so that the reader sees progress all the time.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use lab::{Harm, Lab, Pod, Topology, View, try_repair, until};

use crate::backend::Backend;
use crate::cut;
use crate::paint::{BAD, GOOD, QUIET, TITLE, TYPED, drawing, indented, paint, table};

const PATIENCE: Duration = Duration::from_secs(5);
const OUTAGE: Duration = Duration::from_secs(1);
/// Time from which a repair counts as slow.
const AIM: Duration = Duration::from_secs(1);

/// Returns the topology: three nodes on one segment, one behind a router.
pub(crate) fn topology() -> Topology {
    Topology::routed(3, 1)
}

/// Results of one backend.
struct Act {
    backend: Backend,
    ready: Duration,
    pairs: usize,
    reached: usize,
    near: Vec<Duration>,
    far: Vec<Duration>,
    repairs: Vec<Option<Duration>>,
    as_expected: bool,
}

pub(crate) fn run() -> ExitCode {
    let start = Instant::now();
    first_light(start);
    let acts: Vec<_> = Backend::ALL.into_iter().map(act).collect();
    summary(&acts, start);
    if acts.iter().all(|act| act.as_expected) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn first_light(start: Instant) {
    let lab = topology().build();
    println!("{}", paint(TITLE, "Four nodes in namespaces of their own, on this machine's real kernel"));
    println!("\n{}", drawing(&lab));
    let (from, to) = (lab.node(1), lab.node(4));
    let rtt = from.ping(to.ip).map_or(paint(BAD, "no answer"), |rtt| paint(GOOD, &ms(rtt)));
    println!(
        "first ping, node1 -> node4 through the router: {rtt} ({} after the start)",
        seconds(start.elapsed())
    );
}

fn act(backend: Backend) -> Act {
    println!("\n{}", paint(TITLE, &format!("━━ {} ━━", backend.title())));
    println!("{}", paint(QUIET, backend.idea()));
    let lab = topology().build();
    lab.store.config(backend.config());
    println!("net-conf: {}", backend.config());
    let start = Instant::now();
    let daemons = lab.start_all(&["--iface=eth0"]);
    let ready = start.elapsed();
    let pods = lab.pods();
    println!("{} daemons ready after {}; a pod on each node:", daemons.len(), ms(ready));
    for (node, pod) in lab.nodes().iter().zip(&pods) {
        println!("    {} {:15} -> {} {}", node.name, node.ip.to_string(), pod.name, pod.ip());
    }
    lab::wait_for("every node has a route to every peer", PATIENCE, || routed(&lab));
    let proven = cut::proven_by(backend, &lab);
    show_state(backend, &lab);
    let mut act = Act {
        backend,
        ready,
        pairs: 0,
        reached: 0,
        near: Vec::new(),
        far: Vec::new(),
        repairs: Vec::new(),
        as_expected: proven,
    };
    ping_all(&mut act, &lab, &pods);
    if backend == Backend::HostGw {
        explain_host_gw(&mut act, &lab);
    }
    break_things(&mut act, &lab, &pods);
    if backend == Backend::Auto {
        act.as_expected &= cut::arp(&lab, &pods);
    }
    act
}

fn routed(lab: &Lab) -> bool {
    lab.nodes().iter().all(|node| {
        let routes = node.ns.run("ip route");
        lab.nodes().iter().all(|peer| routes.contains(&peer.subnet()))
    })
}

/// Prints the kernel objects of the pod network, below the commands that show them.
fn show_state(backend: Backend, lab: &Lab) {
    for command in backend.looks() {
        println!("node1$ {}", paint(TYPED, command));
        let said = lab.node(1).ns.run(command);
        let ours = |line: &&str| !command.starts_with("ip route") || line.contains("10.244.");
        let lines: Vec<_> = said.lines().filter(ours).filter(|line| !line.contains("dev cni0")).collect();
        let nothing = paint(QUIET, "(nothing, as it should be)");
        print!("{}", indented(if lines.is_empty() { nothing } else { lines.join("\n") }.as_str()));
    }
}

/// Prints the round-trip time of each pair in a table. A pair that should not reach each other and does is a failure.
fn ping_all(act: &mut Act, lab: &Lab, pods: &[Pod]) {
    let mut rows = Vec::new();
    for (from, pod) in lab.nodes().iter().zip(pods) {
        let mut row = vec![pod.name.clone()];
        for (to, other) in lab.nodes().iter().zip(pods) {
            if from.index == to.index {
                row.push("·".into());
                continue;
            }
            let expected = act.backend.reaches(from, to);
            let rtt = if expected { settled_rtt(pod, other) } else { pod.ping(other.ip()) };
            act.pairs += 1;
            act.reached += usize::from(rtt.is_some());
            act.as_expected &= rtt.is_some() == expected;
            if from.segment == to.segment { &mut act.near } else { &mut act.far }.extend(rtt);
            row.push(rtt.map_or("✗".into(), ms));
        }
        rows.push(row.try_into().unwrap_or_else(|_| unreachable!("four nodes")));
    }
    println!(
        "each pod pings all others (round-trip time; rows ping columns): {} of {} pairs",
        act.reached, act.pairs
    );
    println!("{}", table::<5>(["", "pod1", "pod2", "pod3", "pod4"], rows));
}

/// Returns the median of three echoes, after a first one has resolved addresses.
fn settled_rtt(from: &Pod, to: &Pod) -> Option<Duration> {
    from.reaches(to.ip(), PATIENCE)?;
    median(&(0..3).map(|_| from.ping(to.ip())).collect::<Option<Vec<_>>>()?)
}

fn median(times: &[Duration]) -> Option<Duration> {
    let mut times = times.to_vec();
    times.sort();
    times.get(times.len() / 2).copied()
}

fn explain_host_gw(act: &mut Act, lab: &Lab) {
    let (node, far) = (lab.node(1), lab.node(4));
    let command = format!("ip route show {}", far.subnet());
    let route = node.ns.run(&command);
    println!(
        "{} it is behind a router, not on the same layer-2 segment,",
        paint(BAD, "host-gw cannot reach node4:")
    );
    println!(
        "so its address {} cannot be a next hop: nobody here would answer ARP for it. flannel leaves no",
        far.ip
    );
    println!(
        "route, and the packets are lost by way of the default route without a word; twill refuses them at once:"
    );
    println!("node1$ {}", paint(TYPED, &command));
    print!("{}", indented(&route));
    println!("node1$ {}", paint(TYPED, "twill status"));
    let status = node.twill(&["status"]);
    let about: Vec<_> = status.lines().filter(|line| line.contains(&far.ip.to_string())).collect();
    print!("{}", indented(&about.join("\n")));
    act.as_expected &= route.starts_with("unreachable");
}

fn break_things(act: &mut Act, lab: &Lab, pods: &[Pod]) {
    println!("harm to node1, and the time until its state is as before and each pod answers again:");
    let node = lab.node(1);
    let reached: Vec<_> =
        lab.nodes().iter().zip(pods).filter(|(to, _)| act.backend.reaches(node, to)).collect();
    for harm in act.backend.harms(lab) {
        let before = View::of(&node.ns);
        let mut typed = harm.command(node);
        if harm == Harm::UplinkUp {
            Harm::UplinkDown.apply(node);
            typed = format!("{}; sleep 1; ip link set eth0 up", Harm::UplinkDown.command(node));
            let since = Instant::now();
            until(OUTAGE, || (since.elapsed() >= OUTAGE).then_some(()));
        }
        let all = || reached.iter().all(|(_, pod)| pods[0].ping(pod.ip()).is_some());
        let repaired = try_repair(node, &before, &harm, PATIENCE, all);
        let time = match &repaired {
            Ok(took) => paint(if *took < AIM { GOOD } else { BAD }, &format!("repaired in {}", ms(*took))),
            Err(_) => paint(BAD, "not repaired"),
        };
        println!("node1$ {} {time}", paint(TYPED, &format!("{typed:72}")));
        if let Err(why) = &repaired {
            print!("{}", indented(why));
        }
        act.as_expected &= repaired.is_ok();
        act.repairs.push(repaired.ok());
    }
}

fn summary(acts: &[Act], start: Instant) {
    let none = || "✗".to_owned();
    let row = |act: &Act| {
        let repairs: Vec<_> = act.repairs.iter().map(|took| took.map_or_else(none, ms)).collect();
        [
            act.backend.title().to_owned(),
            ms(act.ready),
            format!("{} of {}", act.reached, act.pairs),
            median(&act.near).map_or_else(none, ms),
            median(&act.far).map_or_else(none, ms),
            repairs.join(", "),
        ]
    };
    let head = ["backend", "ready", "pairs reached", "same segment", "behind router", "repaired in"];
    println!("\n{}", paint(TITLE, &format!("━━ summary, {} ━━", seconds(start.elapsed()))));
    println!("{}", table::<6>(head, acts.iter().map(row).collect()));
    let verdict = match acts.iter().all(|act| act.as_expected) {
        true => paint(GOOD, "All as it should be; host-gw's missing pairs are those to and from node4."),
        false => paint(BAD, "Something did not happen as it should: see above."),
    };
    println!("{verdict}\n\nThe lab is removed. Try it yourself:");
    let say = |command: &str, what: &str| println!("    {}{what}", paint(TYPED, &format!("{command:32}")));
    say("make lab", "runs this again");
    say("target/debug/twill-lab shell", "builds such a network for you to break");
}

fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
