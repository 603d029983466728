//! Selects the warnings that get a log line: new ones, and those that are over. Each text is logged at most once a
//! minute; repetitions are counted and reported with its next line. Each kind of warning has a limited share of a
//! minute's lines. So no kind hides another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use plan::text::printed;
use plan::warning::Warning;

/// Minimum time between two lines with the same text, and the window in which lines of one kind are counted.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of lines per pass, since a thousand peers may fail at once.
const MAX_LINES_PER_PASS: usize = 10;
/// Maximum number of lines of one kind within `REPEAT_INTERVAL`.
const MAX_LINES_OF_KIND: usize = 30;
/// Maximum number of lines about passes that changed something within `REPEAT_INTERVAL`.
const MAX_CHANGE_LINES: usize = 100;
/// Maximum number of texts that are remembered, for current warnings and for logged lines each.
const MAX_TEXTS: usize = 1000;
/// Minimum time between two lines that give the number of omitted lines.
const OMITTED_INTERVAL: Duration = Duration::from_secs(10);

/// Text of a warning and its kind. The kind does not depend on the object that the warning is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WarningText {
    pub(crate) text: String,
    pub(crate) kind: Box<str>,
}

impl WarningText {
    /// Makes a warning of that kind. The text is escaped and shortened by [`printed`].
    pub(crate) fn new(kind: &str, text: impl std::fmt::Display) -> Self {
        Self { text: printed(text), kind: kind.into() }
    }

    /// Returns the first [`MAX_TEXTS`] warnings with their kinds. The caller sorts them: this node first, then peers and store
    /// entries.
    pub(crate) fn all(warnings: &[Warning]) -> BTreeSet<Self> {
        warnings.iter().take(MAX_TEXTS).map(|warning| Self::new(&warning.reason(), warning)).collect()
    }
}

/// Warnings of the last pass, and lines that were logged recently.
#[derive(Default)]
pub(crate) struct WarningLog {
    current: BTreeSet<WarningText>,
    logged: BTreeMap<String, Logged>,
    /// Times of the lines of each kind within [`REPEAT_INTERVAL`].
    kinds: BTreeMap<Box<str>, Vec<Instant>>,
    /// Lines omitted since their number was last logged.
    omitted: Unshown,
    /// Time at which that number was last logged.
    omitted_logged: Option<Instant>,
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

impl WarningLog {
    /// Takes the warnings that hold now and the failures that have just happened. Returns the lines that are due.
    pub(crate) fn lines_due(
        &mut self,
        warnings: BTreeSet<WarningText>,
        failures: impl IntoIterator<Item = WarningText>,
        now: Instant,
    ) -> Vec<Line> {
        let new: Vec<WarningText> = warnings.difference(&self.current).cloned().chain(failures).collect();
        let mut lines = Vec::new();
        for warning in new {
            if lines.len() < MAX_LINES_PER_PASS || self.logged.contains_key(&warning.text) {
                lines.extend(self.line_for(warning, now));
            } else {
                self.omitted.begun += 1;
            }
        }
        lines.extend(self.ended(&warnings, now));
        if self
            .omitted_logged
            .is_none_or(|omitted_logged| now.duration_since(omitted_logged) >= OMITTED_INTERVAL)
            && let Some(line) = std::mem::take(&mut self.omitted).line()
        {
            lines.push(line);
            self.omitted_logged = Some(now);
        }
        self.forget(&warnings, now);
        self.current = warnings;
        lines
    }

    /// Returns the lines about warnings that `warnings` no longer has. A warning that comes and goes gets none.
    fn ended(&mut self, warnings: &BTreeSet<WarningText>, now: Instant) -> Vec<Line> {
        let comes_and_goes = |warning: &&WarningText| {
            self.logged.get(warning.text.as_str()).is_some_and(|logged| logged.omitted > 0)
        };
        let ended: Vec<WarningText> =
            self.current.difference(warnings).filter(|warning| !comes_and_goes(warning)).cloned().collect();
        let mut lines = Vec::new();
        for WarningText { text, kind } in ended {
            let is_known = self.logged.contains_key(&text);
            if is_known && lines.len() < MAX_LINES_PER_PASS && self.has_room(&kind, MAX_LINES_OF_KIND, now) {
                lines.push(Line::Info(format!("resolved: {text}")));
            } else {
                self.omitted.ended += 1;
            }
        }
        lines
    }

    /// Returns the line for a failure that has just happened, if one is due.
    pub(crate) fn line_for(&mut self, WarningText { text, kind }: WarningText, now: Instant) -> Option<Line> {
        if let Some(logged) =
            self.logged.get_mut(&text).filter(|logged| now.duration_since(logged.at) < REPEAT_INTERVAL)
        {
            logged.omitted += 1;
            return None;
        }
        if !self.has_room(&kind, MAX_LINES_OF_KIND, now) {
            self.omitted.begun += 1;
            return None;
        }
        let again = self.logged.get(&text).map_or(0, |logged| logged.omitted);
        let count = if again > 0 { format!(" (and {again} times before)") } else { String::new() };
        let line = Line::Warn(format!("{text}{count}"));
        if self.logged.len() >= MAX_TEXTS {
            let oldest = self.logged.iter().min_by_key(|(_, logged)| logged.at).map(|(text, _)| text.clone());
            oldest.map(|oldest| self.logged.remove(&oldest));
        }
        self.logged.insert(text, Logged { at: now, omitted: 0 });
        Some(line)
    }

    /// Returns true, and counts the line, if one more pass that changed something may be logged.
    pub(crate) fn may_log_change(&mut self, now: Instant) -> bool {
        self.has_room("changes", MAX_CHANGE_LINES, now)
    }

    /// Returns true, and counts the line, if one more line of that kind may be logged.
    fn has_room(&mut self, kind: &str, most: usize, now: Instant) -> bool {
        let times = self.kinds.entry(kind.into()).or_default();
        times.retain(|at| now.duration_since(*at) < REPEAT_INTERVAL);
        let has_room = times.len() < most;
        times.extend(has_room.then_some(now));
        has_room
    }

    fn forget(&mut self, warnings: &BTreeSet<WarningText>, now: Instant) {
        let current: BTreeSet<&str> = warnings.iter().map(|warning| &*warning.text).collect();
        self.logged.retain(|text, logged| {
            current.contains(text.as_str()) || now.duration_since(logged.at) < REPEAT_INTERVAL
        });
        self.kinds
            .retain(|_, times| times.last().is_some_and(|at| now.duration_since(*at) < REPEAT_INTERVAL));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(links: &[&str]) -> BTreeSet<WarningText> {
        links.iter().map(|link| WarningText::new("down", format!("uplink {link} is down"))).collect()
    }

    fn texts(lines: &[Line]) -> Vec<String> {
        lines.iter().map(|line| format!("{line:?}").chars().take(40).collect()).collect()
    }

    #[test]
    fn a_warning_is_logged_when_it_begins_and_when_it_ends() {
        let (mut warning_log, now) = (WarningLog::default(), Instant::now());
        assert!(
            matches!(&warning_log.lines_due(warnings(&["eth0"]), [], now)[..], [Line::Warn(text)] if text.contains("eth0"))
        );
        assert_eq!(warning_log.lines_due(warnings(&["eth0"]), [], now + REPEAT_INTERVAL * 5), []);
        let over = warning_log.lines_due(warnings(&[]), [], now + REPEAT_INTERVAL * 6);
        assert!(
            matches!(&over[..], [Line::Info(text)] if text.starts_with("resolved: ")),
            "{:?}",
            texts(&over)
        );
    }

    #[test]
    fn a_flapping_warning_is_counted_and_logged_once_a_minute() {
        let (mut warning_log, mut now, mut lines) = (WarningLog::default(), Instant::now(), Vec::new());
        for _ in 0..100 {
            lines.extend(warning_log.lines_due(warnings(&["eth0"]), [], now));
            lines.extend(warning_log.lines_due(warnings(&[]), [], now));
            now += Duration::from_millis(500);
        }
        assert_eq!(lines.len(), 2, "{:?}", texts(&lines));
        let later = warning_log.lines_due(warnings(&["eth0"]), [], now + REPEAT_INTERVAL / 2);
        assert!(
            matches!(&later[..], [Line::Warn(text)] if text.contains("99 times before")),
            "{:?}",
            texts(&later)
        );
    }

    #[test]
    fn a_failure_is_logged_once_a_minute_without_an_end() {
        let (mut warning_log, mut now, mut lines) = (WarningLog::default(), Instant::now(), Vec::new());
        for _ in 0..121 {
            lines.extend(warning_log.lines_due(
                BTreeSet::new(),
                [WarningText::new("mishap", "refused")],
                now,
            ));
            now += Duration::from_secs(1);
        }
        let text = |count: &str| Line::Warn(format!("refused{count}"));
        let again = " (and 59 times before)";
        assert_eq!(lines, [text(""), text(again), text(again)]);
    }

    #[test]
    fn a_thousand_warnings_at_once_become_a_few_lines() {
        let many =
            (0..1000).map(|index| WarningText::new("down", format!("uplink eth{index} is down"))).collect();
        let (mut warning_log, now) = (WarningLog::default(), Instant::now());
        let begun = warning_log.lines_due(many, [], now);
        assert_eq!(begun.len(), MAX_LINES_PER_PASS + 1);
        assert_eq!(begun[MAX_LINES_PER_PASS], Line::Warn("and 990 more warnings: see twill status".into()));
        let ended = warning_log.lines_due(BTreeSet::new(), [], now + OMITTED_INTERVAL);
        assert_eq!(ended.len(), MAX_LINES_PER_PASS + 1);
        assert_eq!(ended[MAX_LINES_PER_PASS], Line::Info("and 990 more resolved: see twill status".into()));
    }

    #[test]
    fn new_texts_of_one_kind_fill_neither_log_nor_memory_and_hide_no_other_kind() {
        let (mut warning_log, begun) = (WarningLog::default(), Instant::now());
        let mut lines = Vec::new();
        for turn in 0..600_u32 {
            let now = begun + Duration::from_millis(100) * turn;
            let junk = (0..50)
                .map(|key| WarningText::new("entry", format!("key {key}: {turn} {}", "x".repeat(60_000))));
            lines.extend(warning_log.lines_due(junk.collect(), [], now));
        }
        assert!(lines.len() <= MAX_LINES_OF_KIND + 10, "{}", lines.len());
        assert!(warning_log.logged.len() <= MAX_TEXTS);
        let now = begun + Duration::from_secs(60);
        let other = warning_log.lines_due(warnings(&["eth0"]), [], now);
        assert!(other.contains(&Line::Warn("uplink eth0 is down".into())), "{:?}", texts(&other));
    }

    #[test]
    fn a_lasting_warning_is_logged_once_whatever_comes_and_goes() {
        let (mut warning_log, begun) = (WarningLog::default(), Instant::now());
        assert_eq!(warning_log.lines_due(warnings(&["eth0"]), [], begun).len(), 1);
        for turn in 1..=100_u32 {
            let mut all = warnings(&["eth0"]);
            all.extend((0..50).map(|key| WarningText::new("entry", format!("key {key}: {turn}"))));
            let lines = warning_log.lines_due(all, [], begun + Duration::from_secs(1) * turn);
            assert!(!texts(&lines).iter().any(|line| line.contains("eth0")), "{:?}", texts(&lines));
        }
    }
}
