//! Text from outside: shortened to a limit, with its control characters escaped. It is shortened when it is read, so that
//! it cannot fill memory, and again when it is printed.

use std::fmt::{self, Display, Write};

/// Maximum number of characters that are kept of one text from outside.
pub const READ: usize = 200;
/// Maximum number of characters that are printed of one text.
pub const PRINTED: usize = 500;
/// Characters reserved for the words that say how much was left out.
const RESERVED: usize = 32;

/// Returns the text, shortened to [`READ`] characters and with an ending such as `… (59800 more)`.
pub fn excerpt(text: impl Display) -> String {
    shortened(text, READ)
}

/// Returns the text, shortened to [`PRINTED`] characters.
pub fn printed(text: impl Display) -> String {
    shortened(text, PRINTED)
}

/// Returns the text, shortened to `limit` characters. A shortened text stays as it is under the same or a larger limit.
pub fn shortened(text: impl Display, limit: usize) -> String {
    let mut short = Short { kept: String::new(), count: 0, limit, cut: None, more: 0 };
    // Writing to `short` cannot fail. A text that fails while it prints itself is kept up to that place.
    let _ = write!(short, "{text}");
    short.finish()
}

struct Short {
    kept: String,
    /// Number of characters in `kept`.
    count: usize,
    limit: usize,
    /// Length, in bytes and in characters, to which `kept` is cut if the text turns out too long.
    cut: Option<(usize, usize)>,
    /// Number of characters that were not kept.
    more: usize,
}

impl Short {
    fn push(&mut self, c: char) {
        if self.more > 0 {
            self.more += 1;
            return;
        }
        let room = self.limit.saturating_sub(RESERVED);
        let before = (self.kept.len(), self.count);
        if is_harmless(c) {
            self.kept.push(c);
            self.count += 1;
        } else {
            let escaped = c.escape_default();
            self.count += escaped.len();
            self.kept.extend(escaped);
        }
        if self.count > room && self.cut.is_none() {
            self.cut = Some(before);
        }
        if self.count > self.limit {
            let (bytes, count) = self.cut.unwrap_or(before);
            self.kept.truncate(bytes);
            self.more = self.count - count;
            self.count = count;
        }
    }

    fn finish(mut self) -> String {
        if self.more > 0 {
            // Writing to a String cannot fail.
            let _ = write!(self.kept, "… ({} more)", self.more);
        }
        self.kept
    }
}

impl Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().for_each(|c| self.push(c));
        Ok(())
    }
}

/// Returns true if the character can be printed as it is. It then affects neither a terminal nor the lines of a log.
fn is_harmless(c: char) -> bool {
    let turns_text = matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !c.is_control() && !turns_text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_text_stays_as_it_is() {
        for text in ["", "10.244.3.0/24: left out", "Größe µ …", &"a".repeat(READ)] {
            assert_eq!(excerpt(text), text);
        }
    }

    #[test]
    fn long_text_is_shortened_once_with_the_omitted_length() {
        for text in ["a".repeat(60_000), "\u{1f600}".repeat(60_000), "\u{1b}[2J".repeat(20_000)] {
            let short = excerpt(&text);
            assert!(short.chars().count() <= READ, "{short}");
            assert!(short.ends_with(" more)"), "{short}");
            assert_eq!(excerpt(&short), short);
            assert_eq!(printed(&short), short);
        }
        assert_eq!(excerpt("b".repeat(201)), format!("{}… (33 more)", "b".repeat(168)));
    }

    #[test]
    fn control_characters_are_escaped() {
        for c in [
            '\n', '\r', '\t', '\0', '\u{1b}', '\u{7f}', '\u{9b}', '\u{2028}', '\u{202e}', '\u{2066}',
            '\u{feff}',
        ] {
            let short = excerpt(format!("a{c}b"));
            assert!(!short.contains(c) && short.starts_with('a') && short.ends_with('b'), "{short:?}");
        }
        assert_eq!(excerpt("one\ntwo\u{1b}[31m"), "one\\ntwo\\u{1b}[31m");
    }
}
