//! What of all that is wrong deserves a log line: what is new, and the end of what was, the same words at most once a
//! minute. What comes more often is counted and told with the next line.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The same words again no sooner than this.
const REPEAT: Duration = Duration::from_secs(60);
/// Of one round, so many lines at most: a thousand peers may fail at once.
const LINES: usize = 10;

/// What was said of late.
#[derive(Default)]
pub(crate) struct Notebook {
    current: BTreeSet<String>,
    said: BTreeMap<String, Said>,
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
        notes: BTreeSet<String>,
        mishaps: impl IntoIterator<Item = String>,
        now: Instant,
    ) -> Vec<Line> {
        let new: Vec<String> = notes.difference(&self.current).cloned().chain(mishaps).collect();
        let (mut lines, mut unshown) = (Vec::new(), 0);
        for text in new {
            match self.said.get_mut(&text) {
                Some(said) if now.duration_since(said.at) < REPEAT => said.unsaid += 1,
                _ if lines.len() >= LINES => unshown += 1,
                said => {
                    let again = said.map_or(0, |said| said.unsaid);
                    let count =
                        if again > 0 { format!(" (and {again} times before this)") } else { String::new() };
                    lines.push(Line::Warn(format!("{text}{count}")));
                    self.said.insert(text, Said { at: now, unsaid: 0 });
                }
            }
        }
        if unshown > 0 {
            lines.push(Line::Warn(format!("and {unshown} more; twill status lists all that lasts")));
        }
        let is_calm = |note: &&String| self.said.get(note.as_str()).is_some_and(|said| said.unsaid == 0);
        let over = self.current.difference(&notes).filter(is_calm);
        lines.extend(over.take(LINES).map(|note| Line::Info(format!("no longer: {note}"))));
        self.said.retain(|note, said| notes.contains(note) || now.duration_since(said.at) < REPEAT);
        self.current = notes;
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(links: &[&str]) -> BTreeSet<String> {
        links.iter().map(|link| format!("uplink {link} is down")).collect()
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
            lines.extend(notebook.turn(BTreeSet::new(), ["refused".to_owned()], now));
            now += Duration::from_secs(1);
        }
        let text = |count: &str| Line::Warn(format!("refused{count}"));
        let again = " (and 59 times before this)";
        assert_eq!(lines, [text(""), text(again), text(again)]);
    }

    #[test]
    fn a_thousand_at_once_are_a_few_lines() {
        let many = (0..1000).map(|index| format!("uplink eth{index} is down")).collect();
        assert_eq!(Notebook::default().turn(many, [], Instant::now()).len(), LINES + 1);
    }
}
