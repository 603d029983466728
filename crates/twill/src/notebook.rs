//! What of all that is wrong deserves a log line: what is new, and the end of what was, the same words at most once a
//! minute. What comes more often is counted and told with the next line. No kind of fault may have more than its share of a
//! minute's lines, so that whoever brings one about again and again does not hide the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use plan::note::Note;
use plan::text::printed;

/// Minimum time between two lines of the same words, and the window in which lines of one kind are counted.
const REPEAT: Duration = Duration::from_secs(60);
/// Maximum number of lines of one pass: a thousand peers may fail at once.
const LINES: usize = 10;
/// Maximum number of lines of one kind within `REPEAT`.
const OF_A_KIND: usize = 30;
/// Maximum number of lines about passes that changed something within `REPEAT`.
const CHANGES: usize = 100;
/// Maximum number of texts that are remembered, of those that are current and of those that were said.
const TEXTS: usize = 1000;
/// Minimum time between two lines that say how many were left out.
const REST: Duration = Duration::from_secs(10);

/// Something that is wrong, and its kind, which does not depend on whom it is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Trouble {
    pub(crate) text: String,
    pub(crate) kind: Box<str>,
}

impl Trouble {
    /// Of that kind.
    pub(crate) fn new(kind: &str, text: impl std::fmt::Display) -> Self {
        Self { text: printed(text), kind: kind.into() }
    }

    /// What lasts, the first of it: notes of this node come before those of peers and of entries in the store.
    pub(crate) fn all(notes: &[Note]) -> BTreeSet<Self> {
        notes.iter().take(TEXTS).map(|note| Self::new(&note.reason(), note)).collect()
    }
}

/// What was said of late.
#[derive(Default)]
pub(crate) struct Notebook {
    current: BTreeSet<Trouble>,
    said: BTreeMap<String, Said>,
    /// When the lines of each kind were said, within `REPEAT`.
    kinds: BTreeMap<Box<str>, Vec<Instant>>,
    /// Lines that were left out, and when such a number was said last.
    unshown: usize,
    rest: Option<Instant>,
}

struct Said {
    at: Instant,
    /// How often it came since, without a line.
    unsaid: u32,
}

/// A line for the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Warn(String),
    Info(String),
}

impl Notebook {
    /// Takes what is wrong at present, and what has gone wrong just now, and gives the lines that are due.
    pub(crate) fn turn(
        &mut self,
        notes: BTreeSet<Trouble>,
        mishaps: impl IntoIterator<Item = Trouble>,
        now: Instant,
    ) -> Vec<Line> {
        let new: Vec<Trouble> = notes.difference(&self.current).cloned().chain(mishaps).collect();
        let mut lines = Vec::new();
        for trouble in new {
            if lines.len() < LINES || self.said.contains_key(&trouble.text) {
                lines.extend(self.say(trouble, now));
            } else {
                self.unshown += 1;
            }
        }
        if self.unshown > 0 && self.rest.is_none_or(|rest| now.duration_since(rest) >= REST) {
            let unshown = std::mem::take(&mut self.unshown);
            lines.push(Line::Warn(format!("and {unshown} more; twill status lists all that lasts")));
            self.rest = Some(now);
        }
        let is_calm =
            |note: &&Trouble| self.said.get(note.text.as_str()).is_some_and(|said| said.unsaid == 0);
        let over: Vec<Trouble> =
            self.current.difference(&notes).filter(is_calm).take(LINES).cloned().collect();
        lines.extend(
            over.iter()
                .filter(|note| self.has_room(&note.kind, OF_A_KIND, now))
                .map(|note| Line::Info(format!("no longer: {}", note.text)))
                .collect::<Vec<_>>(),
        );
        self.forget(&notes, now);
        self.current = notes;
        lines
    }

    /// The line for something that has gone wrong just now, if one is due.
    pub(crate) fn say(&mut self, Trouble { text, kind }: Trouble, now: Instant) -> Option<Line> {
        if let Some(said) = self.said.get_mut(&text).filter(|said| now.duration_since(said.at) < REPEAT) {
            said.unsaid += 1;
            return None;
        }
        if !self.has_room(&kind, OF_A_KIND, now) {
            self.unshown += 1;
            return None;
        }
        let again = self.said.get(&text).map_or(0, |said| said.unsaid);
        let count = if again > 0 { format!(" (and {again} times before this)") } else { String::new() };
        let line = Line::Warn(format!("{text}{count}"));
        if self.said.len() >= TEXTS {
            let oldest = self.said.iter().min_by_key(|(_, said)| said.at).map(|(text, _)| text.clone());
            oldest.map(|oldest| self.said.remove(&oldest));
        }
        self.said.insert(text, Said { at: now, unsaid: 0 });
        Some(line)
    }

    /// May one more pass that changed something be told? If so it is counted.
    pub(crate) fn tells_change(&mut self, now: Instant) -> bool {
        self.has_room("changes", CHANGES, now)
    }

    /// May one more line of that kind be said? If so it is counted.
    fn has_room(&mut self, kind: &str, most: usize, now: Instant) -> bool {
        let times = self.kinds.entry(kind.into()).or_default();
        times.retain(|at| now.duration_since(*at) < REPEAT);
        let has_room = times.len() < most;
        times.extend(has_room.then_some(now));
        has_room
    }

    fn forget(&mut self, notes: &BTreeSet<Trouble>, now: Instant) {
        let current: BTreeSet<&str> = notes.iter().map(|note| &*note.text).collect();
        self.said
            .retain(|text, said| current.contains(text.as_str()) || now.duration_since(said.at) < REPEAT);
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
    fn a_note_is_said_when_it_comes_and_when_it_goes() {
        let (mut notebook, now) = (Notebook::default(), Instant::now());
        assert!(
            matches!(&notebook.turn(notes(&["eth0"]), [], now)[..], [Line::Warn(text)] if text.contains("eth0"))
        );
        assert_eq!(notebook.turn(notes(&["eth0"]), [], now + REPEAT * 5), []);
        let over = notebook.turn(notes(&[]), [], now + REPEAT * 6);
        assert!(
            matches!(&over[..], [Line::Info(text)] if text.starts_with("no longer: ")),
            "{:?}",
            texts(&over)
        );
    }

    #[test]
    fn one_that_flaps_is_counted_and_not_repeated_within_a_minute() {
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
    fn a_mishap_has_no_end_and_is_said_once_a_minute() {
        let (mut notebook, mut now, mut lines) = (Notebook::default(), Instant::now(), Vec::new());
        for _ in 0..121 {
            lines.extend(notebook.turn(BTreeSet::new(), [Trouble::new("mishap", "refused")], now));
            now += Duration::from_secs(1);
        }
        let text = |count: &str| Line::Warn(format!("refused{count}"));
        let again = " (and 59 times before this)";
        assert_eq!(lines, [text(""), text(again), text(again)]);
    }

    #[test]
    fn a_thousand_at_once_are_a_few_lines() {
        let many =
            (0..1000).map(|index| Trouble::new("down", format!("uplink eth{index} is down"))).collect();
        assert_eq!(Notebook::default().turn(many, [], Instant::now()).len(), LINES + 1);
    }

    #[test]
    fn ever_new_words_of_one_kind_neither_flood_the_log_nor_memory_nor_hide_another_kind() {
        let (mut notebook, begun) = (Notebook::default(), Instant::now());
        let mut lines = Vec::new();
        for turn in 0..600_u32 {
            let now = begun + Duration::from_millis(100) * turn;
            let junk =
                (0..50).map(|key| Trouble::new("entry", format!("key {key}: {turn} {}", "x".repeat(60_000))));
            lines.extend(notebook.turn(junk.collect(), [], now));
        }
        assert!(lines.len() <= OF_A_KIND + 10, "{}", lines.len());
        assert!(notebook.said.len() <= TEXTS);
        let now = begun + Duration::from_secs(60);
        let other = notebook.turn(notes(&["eth0"]), [], now);
        assert!(other.contains(&Line::Warn("uplink eth0 is down".into())), "{:?}", texts(&other));
    }

    #[test]
    fn what_lasts_is_not_said_again_however_much_comes_and_goes() {
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
