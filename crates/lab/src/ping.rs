//! Echoes by ping(8): one, or a stream whose losses and gaps are counted.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;

use crate::lines::{Line, Lines};
use crate::ns::Ns;

/// One echo from `ns`; with these options after the one second of patience. Its round-trip time, or None.
pub(crate) fn ping(ns: &Ns, to: IpAddr, options: &[&str]) -> Option<Duration> {
    let out =
        ns.command("ping").args(["-n", "-c", "1", "-W", "1"]).args(options).arg(to.to_string()).output();
    let out = out.expect("nsenter starts");
    let text = String::from_utf8_lossy(&out.stdout);
    let ms: f64 = text.split("time=").nth(1)?.split(' ').next()?.parse().ok()?;
    out.status.success().then(|| Duration::from_secs_f64(ms / 1000.0))
}

/// What became of a stream of echoes. The very last one is not counted as lost: it may have been under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingReport {
    pub sent: u64,
    pub received: u64,
    pub lost: u64,
    /// Between two answers, or since the last one.
    pub longest_gap: Duration,
}

/// An echo every so often until stopped.
#[derive(Debug)]
pub struct PingStream {
    lines: Lines,
}

impl PingStream {
    /// Fifty a second.
    pub fn start(from: &Ns, to: impl Into<IpAddr>) -> Self {
        Self::every(from, to, Duration::from_millis(20))
    }

    pub fn every(from: &Ns, to: impl Into<IpAddr>, interval: Duration) -> Self {
        Self::with(from, to.into(), &["-i", &interval.as_secs_f64().to_string()])
    }

    /// Fifty a second, in IP packets of so many bytes that the sender does not fragment.
    pub fn sized(from: &Ns, to: impl Into<IpAddr>, bytes: u32) -> Self {
        let to = to.into();
        let headers = if to.is_ipv4() { 28 } else { 48 };
        Self::with(from, to, &["-i", "0.02", "-M", "do", "-s", &(bytes - headers).to_string()])
    }

    fn with(from: &Ns, to: IpAddr, options: &[&str]) -> Self {
        let mut command = from.command("ping");
        command.args(["-n", "-D"]).args(options).arg(to.to_string());
        let lines = Lines::start(command);
        // Into a pipe it says nothing before the first answer.
        let begun = lines.wait_for(Duration::from_secs(10), |line| line.starts_with("PING"));
        assert!(begun, "ping says: {:?}", lines.all());
        Self { lines }
    }

    /// Answers so far.
    pub fn received(&self) -> u64 {
        self.lines.all().iter().filter(|line| answer(line).is_some()).count() as u64
    }

    /// When the last one so far was answered; panics before the first.
    pub fn last_answer(&self) -> SystemTime {
        let last = self.lines.all().iter().rev().find_map(answer).expect("an answer");
        UNIX_EPOCH + Duration::from_secs_f64(last.1)
    }

    pub fn stop(self) -> PingReport {
        let lines = self.lines.stop(Signal::SIGINT);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let answers: Vec<_> = lines.iter().filter_map(answer).collect();
        let sent = sent(&lines).unwrap_or_else(|| panic!("ping gives no summary: {lines:?}"));
        let received = answers.len() as u64;
        let newest = answers.iter().map(|(seq, _)| *seq).max().unwrap_or(0);
        let counted = if newest + 1 == sent { sent - 1 } else { sent };
        let times: Vec<_> = answers.iter().map(|(_, at)| *at).chain([now]).collect();
        let gap = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        PingReport {
            sent: counted,
            received,
            lost: counted.saturating_sub(received),
            longest_gap: Duration::from_secs_f64(gap),
        }
    }
}

/// Sequence number and time of "[1795405910.667839] 64 bytes from 127.0.0.1: icmp_seq=1 ttl=64 time=0.221 ms".
fn answer(line: &Line) -> Option<(u64, f64)> {
    let (at, rest) = line.text.strip_prefix('[')?.split_once("] ")?;
    if !rest.contains(" bytes from ") || rest.ends_with("(DUP!)") {
        return None;
    }
    let seq = rest.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok()?;
    Some((seq, at.parse().ok()?))
}

/// The number in "2 packets transmitted, 2 received, ...".
fn sent(lines: &[Line]) -> Option<u64> {
    lines.iter().rev().find_map(|line| line.text.split_once(" packets transmitted")?.0.parse().ok())
}
