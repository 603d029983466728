//! Parser for files of `NAME=value` lines as shells, systemd and Docker read them. Blank lines, comments, quotes and
//! `export` are allowed; variables are not expanded.

/// Line that is neither blank nor a comment.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// Line number, counted from 1.
    pub number: usize,
    /// Name and value, or the reason why the line cannot be read. The reason never quotes the line, which may hold a
    /// secret.
    pub assignment: Result<(String, String), &'static str>,
}

/// Returns every line except blank ones and comments, in file order.
pub fn parse(text: &str) -> impl Iterator<Item = Line> {
    let lines = text.lines().map(str::trim).enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(at, line)| Line { number: at + 1, assignment: assignment(line) })
}

/// Returns true if `name` can be the name of a variable: ASCII letters, digits and `_`, no digit first.
pub fn is_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn assignment(line: &str) -> Result<(String, String), &'static str> {
    let line = line.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t'])).unwrap_or(line);
    let (name, text) = line.split_once('=').ok_or("it is not of the form NAME=value")?;
    if !is_name(name.trim()) {
        return Err("the text before = is not the name of a variable");
    }
    Ok((name.trim().into(), value(text.trim())?))
}

fn value(text: &str) -> Result<String, &'static str> {
    let Some(quote) = text.chars().next().filter(|c| ['"', '\''].contains(c)) else {
        let end = text
            .match_indices('#')
            .map(|(at, _)| at)
            .find(|&at| at == 0 || text[..at].ends_with([' ', '\t']));
        return Ok(text[..end.unwrap_or(text.len())].trim_end().into());
    };
    let (mut value, mut rest) = (String::new(), text[1..].chars());
    loop {
        match rest.next().ok_or("its quote does not end")? {
            end if end == quote => break,
            '\\' if quote == '"' => match rest.next().ok_or("its quote does not end")? {
                'n' => value.push('\n'),
                plain @ ('"' | '\\' | '$' | '`') => value.push(plain),
                other => value.extend(['\\', other]),
            },
            plain => value.push(plain),
        }
    }
    let rest = rest.as_str().trim_start();
    if rest.is_empty() || rest.starts_with('#') { Ok(value) } else { Err("something follows its quote") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value_of(line: &str) -> Result<String, &'static str> {
        assignment(line).map(|(name, value)| format!("{name}={value}"))
    }

    #[test]
    fn values_are_read_as_a_shell_would() {
        for (line, expected) in [
            ("A=1", "A=1"),
            ("  export  A_2 = x y ", "A_2=x y"),
            ("export=1", "export=1"),
            ("A=", "A="),
            ("A=#", "A="),
            ("A=1 # one", "A=1"),
            ("A=a#b", "A=a#b"),
            ("A=b=c", "A=b=c"),
            ("A=\"x # y\" # z", "A=x # y"),
            (r#"A="a\"b\\c\nd\e\$""#, "A=a\"b\\c\nd\\e$"),
            (r"A='a\n$b'", r"A=a\n$b"),
            ("A='é'", "A=é"),
        ] {
            assert_eq!(value_of(line.trim()).as_deref(), Ok(expected), "{line}");
        }
    }

    #[test]
    fn a_bad_line_is_named_by_number_without_its_text() {
        let text = "\n# A=1\nhunter2\n=hunter2\n2A=hunter2\nA B=hunter2\nA='hunter2\nA=\"hunter2\\\nA='a' hunter2\r\nB=2\r\n";
        let lines: Vec<Line> = parse(text).collect();
        let numbers: Vec<usize> =
            lines.iter().filter(|line| line.assignment.is_err()).map(|line| line.number).collect();
        assert_eq!(numbers, [3, 4, 5, 6, 7, 8, 9]);
        assert!(
            !lines.iter().any(|line| line.assignment.is_err() && format!("{line:?}").contains("hunter2"))
        );
        assert_eq!(lines[7], Line { number: 10, assignment: Ok(("B".into(), "2".into())) });
    }
}
