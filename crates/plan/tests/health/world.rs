//! A simulated network in steps of ten milliseconds. Each peer's link decides the fate of a probe; chance and latency
//! are added. A plan follows the judges' paths a little later.

use std::time::Duration;

use plan::health::{Answer, Finding, Judge, Local, PATIENCE, PreferredPath, Probe, Sample, suspect};
use plan::{Mac, Path, PeerPath, Tunnel, TunnelKind};

/// Result of a probe that is sent at this time with this path in use; `None` is a loss.
pub(crate) type Link = Box<dyn Fn(Probe, Path, Duration) -> Option<Answer>>;

/// Usual latency of an echo.
pub(crate) const LATENCY: Duration = Duration::from_millis(10);
const STEP: Duration = Duration::from_millis(10);
/// Time until a reconcile pass has applied a decision.
const ROUND: Duration = Duration::from_millis(100);

pub(crate) struct Sim {
    pub(crate) judge: Judge,
    pub(crate) peer: PeerPath,
    pub(crate) link: Link,
    /// Delay of a second machine that answers for the address, too.
    pub(crate) twin: Option<Duration>,
    /// Number of changes of path.
    pub(crate) switches: usize,
    /// Probes that were sent, with their times; those of searches are left out.
    pub(crate) asked: Vec<(Duration, Probe)>,
    /// Changes of the finding, in order.
    said: Vec<Finding>,
    /// Results to come, with their times.
    coming: Vec<(Duration, Sample)>,
    /// Time at which the plan follows the last decision.
    follow: Option<Duration>,
}

pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) sims: Vec<Sim>,
    /// Part of the packets that is lost in each direction.
    pub(crate) loss: f64,
    pub(crate) latency: (Duration, Duration),
    pub(crate) pace: Duration,
    pub(crate) uplink_down: bool,
    dice: u64,
}

pub(crate) fn local() -> Local {
    Local { uplink: "eth0".parse().unwrap(), mtu: 1450 }
}

pub(crate) fn peer(n: u8, path: Path, by_evidence: bool) -> PeerPath {
    PeerPath {
        subnet: format!("10.244.{n}.0/24").parse().unwrap(),
        public_ip: [192, 0, 2, n].into(),
        path,
        on_link: true,
        tunnel: Some(Tunnel {
            kind: TunnelKind::Vxlan,
            link: "flannel.1".parse().unwrap(),
            mac: Some(Mac([2, 0, 0, 0, 1, n])),
            port: Some(8472),
            mtu: 1450,
        }),
        by_evidence,
        born: 0,
    }
}

/// Returns the reply of a healthy peer.
pub(crate) fn came(probe: Probe) -> Answer {
    match probe {
        Probe::NextHop => Answer::Is { mac: Mac([2, 0, 0, 0, 0, 1]), also: None },
        Probe::Checksum => Answer::Checksums { offloaded: true, complete: true },
        _ => Answer::Came { after: LATENCY },
    }
}

pub(crate) fn refused() -> Option<Answer> {
    Some(Answer::Refused { by: [192, 0, 2, 254].into() })
}

/// Returns a link that drops echoes above this MTU without a message.
pub(crate) fn big(mtu: u16) -> Link {
    Box::new(move |probe, _, _| match probe {
        Probe::PathSized(size) if size > mtu => None,
        _ => Some(came(probe)),
    })
}

/// Returns a link that reports this MTU for larger echoes.
pub(crate) fn too_big(mtu: u16) -> Link {
    Box::new(move |probe, _, _| match probe {
        Probe::PathSized(size) if size > mtu => Some(Answer::TooBig { mtu }),
        _ => Some(came(probe)),
    })
}

/// Records the probes, without those of a search for a size.
pub(crate) fn count(asked: &mut Vec<(Duration, Probe)>, probes: &[Probe], now: Duration) {
    let sized = |probe: &&Probe| !matches!(probe, Probe::PathSized(size) if *size != 1450);
    let sized = |probe: &&Probe| sized(probe) && !matches!(probe, Probe::NodeSized(size) if *size != 1500);
    asked.extend(probes.iter().filter(sized).map(|probe| (now, *probe)));
}

pub(crate) fn most_in_a_second(asked: &[(Duration, Probe)]) -> usize {
    let within =
        |n: usize| asked[n..].iter().take_while(move |(at, _)| *at < asked[n].0 + Duration::from_secs(1));
    (0..asked.len()).map(|n| within(n).count()).max().unwrap_or(0)
}

impl Sim {
    pub(crate) fn new(peer: PeerPath) -> Self {
        let judge = Judge::new(peer.clone(), local(), Duration::ZERO);
        Self {
            judge,
            peer,
            link: Box::new(|probe, _, _| Some(came(probe))),
            twin: None,
            switches: 0,
            asked: Vec::new(),
            said: Vec::new(),
            coming: Vec::new(),
            follow: None,
        }
    }

    /// Returns the names of the findings, in order.
    pub(crate) fn findings(&self) -> Vec<&'static str> {
        self.said.iter().map(Finding::name).collect()
    }

    fn send(&mut self, probe: Probe, now: Duration, fate: ([bool; 2], Duration)) {
        let (lost, after) = fate;
        let certain = |answer: &Answer| matches!(answer, Answer::Impossible | Answer::Checksums { .. });
        let answer = (self.link)(probe, self.peer.path, now).filter(|answer| !lost[0] || certain(answer));
        let (at, answer) = match answer {
            Some(Answer::Checksums { offloaded, complete }) => {
                // Each of the two datagrams may be lost by itself.
                let (offloaded, complete) = (offloaded && !lost[0], complete && !lost[1]);
                (now + PATIENCE, Answer::Checksums { offloaded, complete })
            }
            None => (now + PATIENCE, Answer::Lost),
            Some(Answer::Came { .. }) => (now + after, Answer::Came { after }),
            Some(Answer::Impossible) => (now, Answer::Impossible),
            Some(answer) => (now + after, answer),
        };
        self.coming.push((at, Sample { probe, sent: now, answer }));
        if let (Answer::Is { .. }, Some(later)) = (answer, self.twin) {
            let answer = Answer::Is { mac: Mac([2, 0, 0, 0, 0, 66]), also: None };
            self.coming.push((at + later, Sample { probe, sent: now, answer }));
        }
    }

    /// Applies the judge's decision after the delay of a pass.
    fn plan(&mut self, now: Duration) {
        let path = match self.judge.health().peer.preferred_path {
            Some(PreferredPath::Direct) => Path::Direct,
            Some(PreferredPath::Tunnel) => Path::Tunnel(TunnelKind::Vxlan),
            None => self.peer.path,
        };
        if path == self.peer.path {
            self.follow = None;
        } else if now >= *self.follow.get_or_insert(now + ROUND) {
            self.peer.path = path;
            self.switches += 1;
            self.judge.update_path(self.peer.clone(), local(), now);
        }
    }
}

impl World {
    pub(crate) fn new(sims: Vec<Sim>, seed: u64) -> Self {
        let pace = Duration::from_secs(1);
        Self {
            now: Duration::ZERO,
            sims,
            loss: 0.0,
            latency: (LATENCY, LATENCY),
            pace,
            uplink_down: false,
            dice: seed,
        }
    }

    pub(crate) fn finding(&self, n: usize) -> Finding {
        self.sims[n].judge.health().peer.finding
    }

    pub(crate) fn preferred_path(&self, n: usize) -> Option<PreferredPath> {
        self.sims[n].judge.health().peer.preferred_path
    }

    pub(crate) fn run(&mut self, time: Duration) {
        self.run_while(time, |_| true);
    }

    pub(crate) fn run_while(&mut self, time: Duration, go_on: impl Fn(&Self) -> bool) {
        let end = self.now + time;
        while self.now < end && go_on(self) {
            self.step();
            self.now += STEP;
        }
        for sim in &self.sims {
            let most = most_in_a_second(&sim.asked);
            assert!(most <= 10, "{most} in a second");
        }
    }

    fn step(&mut self) {
        let now = self.now;
        let suspect = self.uplink_down || suspect(self.sims.iter().map(|sim| &sim.judge), now);
        for n in 0..self.sims.len() {
            let due: Vec<Sample> = {
                let coming = &mut self.sims[n].coming;
                coming.sort_by_key(|(at, _)| *at);
                let ready = coming.iter().take_while(|(at, _)| *at <= now).count();
                coming.drain(..ready).map(|(_, sample)| sample).collect()
            };
            let sim = &mut self.sims[n];
            if !due.is_empty() {
                due.iter().for_each(|sample| sim.judge.record(*sample));
                sim.judge.decide(now, suspect);
                let finding = sim.judge.health().peer.finding;
                if sim.said.last().map_or(finding.name() != "unverified", |last| *last != finding) {
                    sim.said.push(finding);
                }
            }
            sim.plan(now);
            if sim.judge.next() <= now {
                let probes = sim.judge.due_probes(now, self.pace);
                assert!(sim.judge.next() > now);
                count(&mut sim.asked, &probes, now);
                for probe in probes {
                    let fate = self.fate();
                    self.sims[n].send(probe, now, fate);
                }
            }
        }
    }

    fn fate(&mut self) -> ([bool; 2], Duration) {
        let lost = [(); 2].map(|()| self.roll() < self.loss || self.roll() < self.loss);
        let (least, most) = self.latency;
        (lost, least + (most - least).mul_f64(self.roll()))
    }

    /// Returns a random number from 0 to 1 (splitmix).
    fn roll(&mut self) -> f64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.dice;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as f64 / u64::MAX as f64
    }
}
