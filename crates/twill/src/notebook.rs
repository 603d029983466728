//! Selects the warnings that get a log line: new ones, and those that are over. Each text is logged at most once a
//! minute; repetitions are counted and reported with its next line. Each kind of warning has a limited share of a
//! minute's lines. So no kind hides another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use plan::note::Note;
use plan::text::printed;

/// Minimum time between two lines with the same text, and the window in which lines of one kind are counted.
const REPEAT: Duration = Duration::from_secs(60);
/// Maximum number of lines per pass, since a thousand peers may fail at once.
const LINES: usize = 10;
/// Maximum number of lines of one kind within `REPEAT`.
const OF_A_KIND: usize = 30;
/// Maximum number of lines about passes that changed something within `REPEAT`.
const CHANGES: usize = 100;
/// Maximum number of texts that are remembered, for current warnings and for logged lines each.
const TEXTS: usize = 1000;
/// Minimum time between two lines that give the number of omitted lines.
const REST: Duration = Duration::from_secs(10);

/// Text of a warning and its kind. The kind does not depend on the object that the warning is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Trouble {
    pub(crate) text: String,
    pub(crate) kind: Box<str>,
}

impl Trouble {
    /// Makes a warning of that kind. The text is escaped and shortened by [`printed`].
    pub(crate) fn new(kind: &str, text: impl std::fmt::Display) -> Self {
        Self { text: printed(text), kind: kind.into() }
    }

    /// Returns the first [`TEXTS`] notes as warnings. The caller sorts them: this node first, then peers and store
    /// entries.
    pub(crate) fn all(notes: &[Note]) -> BTreeSet<Self> {
        notes.iter().take(TEXTS).map(|note| Self::new(&note.reason(), note)).collect()
    }
}

/// Warnings of the last pass, and lines that were logged recently.
#[derive(Default)]
pub(crate) struct Notebook {
    current: BTreeSet<Trouble>,
    logged: BTreeMap<String, Logged>,
    /// Times of the lines of each kind within [`REPEAT`].
    kinds: BTreeMap<Box<str>, Vec<Instant>>,
    /// Lines omitted since their number was last logged.
    unshown: Unshown,
    /// Time at which that number was last logged.
    rest: Option<Instant>,
}

/// Number of lines that were omitted because there were too many.
#[derive(Clone, Copy, Default)]
struct Unshown {
    /// Lines about warnings that began.
    begun: usize,
    /// Lines about warnings that ended.
    ended: usize,
}

impl Unshown {
    /// Returns the line with these numbers, if something was omitted.
    fn line(self) -> Option<Line> {
        match (self.begun, self.ended) {
            (0, 0) => None,
            (0, ended) => Some(Line::Info(format!("and {ended} more resolved: see twill status"))),
            (begun, 0) => Some(Line::Warn(format!("and {begun} more warnings: see twill status"))),
            (begun, ended) => Some(Line::Warn(format!(
                "and {begun} more warnings, {ended} more resolved: see twill status"
            ))),
        }
    }
}

/// Text that was logged.
struct Logged {
    at: Instant,
    /// Number of repetitions since then that got no line.
    omitted: u32,
}

/// Line for the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Warn(String),
    Info(String),
}

impl Notebook {
    /// Takes the warnings that hold now and the failures that have just happened. Returns the lines that are due.
    pub(crate) fn turn(
        &mut self,
        notes: BTreeSet<Trouble>,
        mishaps: impl IntoIterator<Item = Trouble>,
        now: Instant,
    ) -> Vec<Line> {
        let new: Vec<Trouble> = notes.difference(&self.current).cloned().chain(mishaps).collect();
        let mut lines = Vec::new();
        for trouble in new {
            if lines.len() < LINES || self.logged.contains_key(&trouble.text) {
                lines.extend(self.say(trouble, now));
            } else {
                self.unshown.begun += 1;
            }
        }
        lines.extend(self.ended(&notes, now));
        if self.rest.is_none_or(|rest| now.duration_since(rest) >= REST)
            && let Some(line) = std::mem::take(&mut self.unshown).line()
        {
            lines.push(line);
            self.rest = Some(now);
        }
        self.forget(&notes, now);
        self.current = notes;
        lines
    }

    /// Returns the lines about warnings that `notes` no longer has. A warning that comes and goes gets none.
    fn ended(&mut self, notes: &BTreeSet<Trouble>, now: Instant) -> Vec<Line> {
        let comes_and_goes =
            |note: &&Trouble| self.logged.get(note.text.as_str()).is_some_and(|logged| logged.omitted > 0);
        let ended: Vec<Trouble> =
            self.current.difference(notes).filter(|note| !comes_and_goes(note)).cloned().collect();
        let mut lines = Vec::new();
        for Trouble { text, kind } in ended {
            let is_known = self.logged.contains_key(&text);
            if is_known && lines.len() < LINES && self.has_room(&kind, OF_A_KIND, now) {
                lines.push(Line::Info(format!("resolved: {text}")));
            } else {
                self.unshown.ended += 1;
            }
        }
        lines
    }

    /// Returns the line for a failure that has just happened, if one is due.
    pub(crate) fn say(&mut self, Trouble { text, kind }: Trouble, now: Instant) -> Option<Line> {
        if let Some(logged) =
            self.logged.get_mut(&text).filter(|logged| now.duration_since(logged.at) < REPEAT)
        {
            logged.omitted += 1;
            return None;
        }
        if !self.has_room(&kind, OF_A_KIND, now) {
            self.unshown.begun += 1;
            return None;
        }
        let again = self.logged.get(&text).map_or(0, |logged| logged.omitted);
        let count = if again > 0 { format!(" (and {again} times before)") } else { String::new() };
        let line = Line::Warn(format!("{text}{count}"));
        if self.logged.len() >= TEXTS {
            let oldest = self.logged.iter().min_by_key(|(_, logged)| logged.at).map(|(text, _)| text.clone());
            oldest.map(|oldest| self.logged.remove(&oldest));
        }
        self.logged.insert(text, Logged { at: now, omitted: 0 });
        Some(line)
    }

    /// Returns true, and counts the line, if one more pass that changed something may be logged.
    pub(crate) fn may_log_change(&mut self, now: Instant) -> bool {
        self.has_room("changes", CHANGES, now)
    }

    /// Returns true, and counts the line, if one more line of that kind may be logged.
    fn has_room(&mut self, kind: &str, most: usize, now: Instant) -> bool {
        let times = self.kinds.entry(kind.into()).or_default();
        times.retain(|at| now.duration_since(*at) < REPEAT);
        let has_room = times.len() < most;
        times.extend(has_room.then_some(now));
        has_room
    }

    fn forget(&mut self, notes: &BTreeSet<Trouble>, now: Instant) {
        let current: BTreeSet<&str> = notes.iter().map(|note| &*note.text).collect();
        self.logged
            .retain(|text, logged| current.contains(text.as_str()) || now.duration_since(logged.at) < REPEAT);
        self.kinds.retain(|_, times| times.last().is_some_and(|at| now.duration_since(*at) < REPEAT));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(links: &[&str]) -> BTreeSet<Trouble> {
        links.iter().map(|link| Trouble::new("down", format!("uplink {link} is down"))).collect()
    }

    fn texts(lines: &[Line]) -> Vec<String> {
        lines.iter().map(|line| format!("{line:?}").chars().take(40).collect()).collect()
    }

    #[test]
    fn a_warning_is_logged_when_it_begins_and_when_it_ends() {
        let (mut notebook, now) = (Notebook::default(), Instant::now());
        assert!(
            matches!(&notebook.turn(notes(&["eth0"]), [], now)[..], [Line::Warn(text)] if text.contains("eth0"))
        );
        assert_eq!(notebook.turn(notes(&["eth0"]), [], now + REPEAT * 5), []);
        let over = notebook.turn(notes(&[]), [], now + REPEAT * 6);
        assert!(
            matches!(&over[..], [Line::Info(text)] if text.starts_with("resolved: ")),
            "{:?}",
            texts(&over)
        );
    }

    #[test]
    fn a_flapping_warning_is_counted_and_logged_once_a_minute() {
        let (mut notebook, mut now, mut lines) = (Notebook::default(), Instant::now(), Vec::new());
        for _ in 0..100 {
            lines.extend(notebook.turn(notes(&["eth0"]), [], now));
            lines.extend(notebook.turn(notes(&[]), [], now));
            now += Duration::from_millis(500);
        }
        assert_eq!(lines.len(), 2, "{:?}", texts(&lines));
        let later = notebook.turn(notes(&["eth0"]), [], now + REPEAT / 2);
        assert!(
            matches!(&later[..], [Line::Warn(text)] if text.contains("99 times before")),
            "{:?}",
            texts(&later)
        );
    }

    #[test]
    fn a_failure_is_logged_once_a_minute_without_an_end() {
        let (mut notebook, mut now, mut lines) = (Notebook::default(), Instant::now(), Vec::new());
        for _ in 0..121 {
            lines.extend(notebook.turn(BTreeSet::new(), [Trouble::new("mishap", "refused")], now));
            now += Duration::from_secs(1);
        }
        let text = |count: &str| Line::Warn(format!("refused{count}"));
        let again = " (and 59 times before)";
        assert_eq!(lines, [text(""), text(again), text(again)]);
    }

    #[test]
    fn a_thousand_warnings_at_once_become_a_few_lines() {
        let many =
            (0..1000).map(|index| Trouble::new("down", format!("uplink eth{index} is down"))).collect();
        let (mut notebook, now) = (Notebook::default(), Instant::now());
        let begun = notebook.turn(many, [], now);
        assert_eq!(begun.len(), LINES + 1);
        assert_eq!(begun[LINES], Line::Warn("and 990 more warnings: see twill status".into()));
        let ended = notebook.turn(BTreeSet::new(), [], now + REST);
        assert_eq!(ended.len(), LINES + 1);
        assert_eq!(ended[LINES], Line::Info("and 990 more resolved: see twill status".into()));
    }

    #[test]
    fn new_texts_of_one_kind_fill_neither_log_nor_memory_and_hide_no_other_kind() {
        let (mut notebook, begun) = (Notebook::default(), Instant::now());
        let mut lines = Vec::new();
        for turn in 0..600_u32 {
            let now = begun + Duration::from_millis(100) * turn;
            let junk =
                (0..50).map(|key| Trouble::new("entry", format!("key {key}: {turn} {}", "x".repeat(60_000))));
            lines.extend(notebook.turn(junk.collect(), [], now));
        }
        assert!(lines.len() <= OF_A_KIND + 10, "{}", lines.len());
        assert!(notebook.logged.len() <= TEXTS);
        let now = begun + Duration::from_secs(60);
        let other = notebook.turn(notes(&["eth0"]), [], now);
        assert!(other.contains(&Line::Warn("uplink eth0 is down".into())), "{:?}", texts(&other));
    }

    #[test]
    fn a_lasting_warning_is_logged_once_whatever_comes_and_goes() {
        let (mut notebook, begun) = (Notebook::default(), Instant::now());
        assert_eq!(notebook.turn(notes(&["eth0"]), [], begun).len(), 1);
        for turn in 1..=100_u32 {
            let mut all = notes(&["eth0"]);
            all.extend((0..50).map(|key| Trouble::new("entry", format!("key {key}: {turn}"))));
            let lines = notebook.turn(all, [], begun + Duration::from_secs(1) * turn);
            assert!(!texts(&lines).iter().any(|line| line.contains("eth0")), "{:?}", texts(&lines));
        }
    }
}
