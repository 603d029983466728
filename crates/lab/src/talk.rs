//! A long-lived TCP connection to a witness, which sends a byte and waits for its echo again and again. The report says whether
//! the connection was cut, and how long it was silent at most.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::ns::Ns;
use crate::wait::patient;
use crate::witness::Witness;

/// Time between two bytes.
const PACE: Duration = Duration::from_millis(10);
/// Silence of the witness after which the connection counts as cut.
const SILENCE: Duration = Duration::from_secs(5);

/// Result of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TalkReport {
    /// Number of bytes that came back.
    pub bytes: u64,
    /// Longest time between two bytes that came back.
    pub longest_gap: Duration,
    /// Reason why the connection ended before it was stopped.
    pub cut: Option<String>,
}

/// A running connection.
#[derive(Debug)]
pub struct Talk {
    bytes: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    talker: JoinHandle<TalkReport>,
}

impl Talk {
    /// Connects from `from` to the witness at `to`. Panics if there is no answer.
    pub fn start(from: &Ns, to: IpAddr) -> Self {
        let stream =
            from.within(|| TcpStream::connect_timeout(&(to, Witness::port()).into(), patient(SILENCE)));
        let stream = stream.unwrap_or_else(|e| panic!("{} does not connect to {to}: {e}", from.name()));
        stream.set_read_timeout(Some(patient(SILENCE))).expect("a socket option");
        stream.set_nodelay(true).expect("a socket option");
        let (bytes, over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counter, stop) = (Arc::clone(&bytes), Arc::clone(&over));
        let talker = thread::spawn(move || talk(stream, &counter, &stop));
        Self { bytes, over, talker }
    }

    /// Returns the number of bytes that came back so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Ends the connection and returns its result.
    pub fn stop(self) -> TalkReport {
        self.over.store(true, Ordering::Relaxed);
        self.talker.join().expect("the talker ends")
    }
}

fn talk(mut stream: TcpStream, bytes: &AtomicU64, over: &AtomicBool) -> TalkReport {
    let mut report = TalkReport { bytes: 0, longest_gap: Duration::ZERO, cut: None };
    let mut reader = match stream.try_clone() {
        Ok(clone) => BufReader::new(clone),
        Err(error) => return TalkReport { cut: Some(error.to_string()), ..report },
    };
    let mut last = Instant::now();
    let mut step = reader.read_line(&mut String::new()).map(|_| ());
    while step.is_ok() && !over.load(Ordering::Relaxed) {
        step = stream.write_all(b".").and_then(|()| reader.read_exact(&mut [0]));
        if step.is_ok() {
            report.bytes = bytes.fetch_add(1, Ordering::Relaxed) + 1;
        }
        report.longest_gap = report.longest_gap.max(last.elapsed());
        last = Instant::now();
        thread::sleep(PACE);
    }
    report.cut = step.err().map(|error| error.to_string());
    report
}
