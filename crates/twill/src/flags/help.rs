//! Text of `twill daemon --help`, made from the table of flags.

use std::fmt::Write;

use super::daemon::Flags;
use super::table::{Flag, GROUPS, flags};

/// Maximum width of a line, characters.
const WIDTH: usize = 100;

/// Returns the help text; `program` is the name by which the daemon was called.
pub(super) fn help(program: &str) -> String {
    let mut text = format!(
        "usage: {program} [flags]\n\n\
         Gives this node a pod subnet and connects its pods with those of all other nodes.\n\n\
         A flag may be written -name or --name. Its value follows = or is the next word; a boolean takes its\n\
         value after = only. Each flag is also a variable of the environment and of the options file\n\
         (FLANNELD_ETCD_PREFIX for --etcd-prefix). The command line overrides the environment, which\n\
         overrides the options file.\n"
    );
    let width = flags().map(|flag| spelled(flag).len()).max().unwrap_or(0);
    for group in GROUPS {
        let lack = (group.lack)(&Flags::default()).map_or(String::new(), |lack| format!(" ({lack})"));
        let _ = writeln!(text, "\n{}{lack}:", group.title);
        for flag in group.flags {
            let mut left = spelled(flag);
            for line in wrapped(&explained(flag), WIDTH - width - 4) {
                let _ = writeln!(text, "  {left:width$}  {line}");
                left.clear();
            }
        }
    }
    text
}

fn spelled(flag: &Flag) -> String {
    if flag.value.is_empty() { format!("--{}", flag.name) } else { format!("--{}={}", flag.name, flag.value) }
}

fn explained(flag: &Flag) -> String {
    if flag.default.is_empty() {
        flag.help.into()
    } else {
        format!("{} (default {})", flag.help, flag.default)
    }
}

/// Breaks the text into lines of at most `width` characters; a longer word has a line of its own.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= width => *line += &format!(" {word}"),
            _ => lines.push(word.into()),
        }
    }
    lines
}
