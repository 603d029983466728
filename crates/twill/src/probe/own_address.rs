//! Watch for a second machine on the segment that has one of this node's own addresses. Its requests have no address
//! of the sender (RFC 5227 section 2.1), so they spoil no cache. Sends nothing itself.

use std::net::IpAddr;
use std::time::Duration;

use plan::Mac;

/// Time between two checks. Each costs one request to all machines of the segment.
const PERIOD: Duration = Duration::from_secs(60);
/// Time between two checks while a second machine is known, so that its end is seen soon.
const WATCHING: Duration = Duration::from_secs(10);

/// Second machine with an address of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rival {
    pub(crate) address: IpAddr,
    /// MAC that replies for the address beside ours.
    pub(crate) mac: Mac,
}

/// State of the checks.
#[derive(Debug, Default)]
pub(super) struct OwnAddresses {
    /// Time of the next check.
    due: Duration,
    rival: Option<Rival>,
    /// True if a second machine has replied since the last check began.
    answered: bool,
}

impl OwnAddresses {
    /// Returns the time of the next check.
    pub(super) fn due(&self) -> Duration {
        self.due
    }

    /// Returns the second machine, if one has replied to the last check or the one before.
    pub(super) fn rival(&self) -> Option<Rival> {
        self.rival
    }

    /// Brings the next check forward, because the node's addresses may have changed.
    pub(super) fn hasten(&mut self, now: Duration) {
        self.due = self.due.min(now);
    }

    /// Begins a check.
    pub(super) fn begin(&mut self, now: Duration) {
        if !self.answered {
            self.rival = None;
        }
        self.answered = false;
        self.due = now + if self.rival.is_some() { WATCHING } else { PERIOD };
    }

    /// Records that a machine with this MAC, which is none of ours, has our address.
    pub(super) fn claimed(&mut self, address: IpAddr, mac: Mac, now: Duration) {
        (self.rival, self.answered) = (Some(Rival { address, mac }), true);
        self.due = self.due.min(now + WATCHING);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rival_stands_until_two_checks_in_a_row_find_none() {
        let mut own = OwnAddresses::default();
        let (address, mac) = ([192, 0, 2, 1].into(), Mac([2, 0, 0, 0, 0, 7]));
        let mut now = Duration::ZERO;
        own.begin(now);
        assert_eq!((own.rival(), own.due()), (None, PERIOD));
        own.claimed(address, mac, now);
        assert_eq!((own.rival(), own.due()), (Some(Rival { address, mac }), WATCHING));
        for answered in [true, false] {
            now = own.due();
            own.begin(now);
            assert_eq!((own.rival().is_some(), own.due()), (true, now + WATCHING), "{answered}");
            if answered {
                own.claimed(address, mac, now);
            }
        }
        now = own.due();
        own.begin(now);
        assert_eq!((own.rival(), own.due()), (None, now + PERIOD));
    }
}
