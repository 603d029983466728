//! Sends echoes with ping(8): a single one, or a stream whose losses and gaps are counted.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;

use crate::lines::{Line, Lines};
use crate::ns::Ns;

/// Sends one echo from `ns` and waits one second; `options` may override that. Returns the round-trip time, or `None`.
pub(crate) fn ping(ns: &Ns, to: IpAddr, options: &[&str]) -> Option<Duration> {
    let out =
        ns.command("ping").args(["-n", "-c", "1", "-W", "1"]).args(options).arg(to.to_string()).output();
    let out = out.expect("nsenter starts");
    let text = String::from_utf8_lossy(&out.stdout);
    let ms: f64 = text.split("time=").nth(1)?.split(' ').next()?.parse().ok()?;
    out.status.success().then(|| Duration::from_secs_f64(ms / 1000.0))
}

/// Result of a stream of echoes. The very last one does not count as lost: its answer may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingReport {
    pub sent: u64,
    pub received: u64,
    pub lost: u64,
    /// Longest time between two answers, or since the last one.
    pub longest_gap: Duration,
}

/// A stream of echoes at a fixed interval, until stopped.
#[derive(Debug)]
pub struct PingStream {
    lines: Lines,
}

impl PingStream {
    /// Sends fifty echoes a second.
    pub fn start(from: &Ns, to: impl Into<IpAddr>) -> Self {
        Self::every(from, to, Duration::from_millis(20))
    }

    /// Sends an echo every `interval`.
    pub fn every(from: &Ns, to: impl Into<IpAddr>, interval: Duration) -> Self {
        Self::with(from, to.into(), &["-i", &interval.as_secs_f64().to_string()])
    }

    /// Sends fifty echoes a second, in IP packets of `bytes` bytes that must not be fragmented.
    pub fn sized(from: &Ns, to: impl Into<IpAddr>, bytes: u32) -> Self {
        let to = to.into();
        let headers = if to.is_ipv4() { 28 } else { 48 };
        Self::with(from, to, &["-i", "0.02", "-M", "do", "-s", &(bytes - headers).to_string()])
    }

    fn with(from: &Ns, to: IpAddr, options: &[&str]) -> Self {
        let mut command = from.command("ping");
        command.args(["-n", "-D"]).args(options).arg(to.to_string());
        let lines = Lines::start(command);
        // With a pipe as output, ping prints nothing before the first answer.
        let begun = lines.wait_for(Duration::from_secs(10), |line| line.starts_with("PING"));
        assert!(begun, "ping says: {:?}", lines.all());
        Self { lines }
    }

    /// Returns the number of answers so far.
    pub fn received(&self) -> u64 {
        self.lines.all().iter().filter(|line| answer(line).is_some()).count() as u64
    }

    /// Returns the time of the last answer so far. Panics if there is none.
    pub fn last_answer(&self) -> SystemTime {
        let last = self.lines.all().iter().rev().find_map(answer).expect("an answer");
        UNIX_EPOCH + Duration::from_secs_f64(last.1)
    }

    /// Ends the stream and returns its result.
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

/// Parses sequence number and time of "[1795405910.667839] 64 bytes from 127.0.0.1: icmp_seq=1 ttl=64 time=0.221 ms".
fn answer(line: &Line) -> Option<(u64, f64)> {
    let (at, rest) = line.text.strip_prefix('[')?.split_once("] ")?;
    if !rest.contains(" bytes from ") || rest.ends_with("(DUP!)") {
        return None;
    }
    let seq = rest.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok()?;
    Some((seq, at.parse().ok()?))
}

/// Parses the number of sent packets in "2 packets transmitted, 2 received, ...".
fn sent(lines: &[Line]) -> Option<u64> {
    lines.iter().rev().find_map(|line| line.text.split_once(" packets transmitted")?.0.parse().ok())
}
