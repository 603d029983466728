//! Finds the imports between the top-level modules of a crate, by a scan of its source text.
//!
//! A module and its children are one unit. `use` items and paths in code count if they begin with `crate`, `super` or
//! `self`. A name that lib.rs or main.rs only re-exports leads to the module that defines it. Tests are left out.

use std::collections::BTreeMap;
use std::iter::once;

/// Source file of a crate.
pub(crate) struct Source {
    /// Path of its module in the crate: `health`, `judge` for `src/health/judge.rs`, and nothing for the root.
    pub(crate) module: Vec<String>,
    /// Path of the file, for messages.
    pub(crate) file: String,
    pub(crate) text: String,
}

/// Use of an item of one top-level module in another one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Import {
    pub(crate) from: String,
    pub(crate) to: String,
    /// File and line, such as `plan/src/diff.rs:12`.
    pub(crate) place: String,
}

/// Top-level modules of a crate, and the names that its root makes reachable as `crate::Name`.
struct Names<'a> {
    /// Name of the root as a unit: `lib` or `main`.
    root: &'a str,
    modules: Vec<&'a str>,
    /// Module that defines each name which the root imports or re-exports, and each macro.
    defined: BTreeMap<String, &'a str>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Token<'a> {
    text: &'a str,
    line: usize,
}

/// A path in the source, such as `crate::state::Row`, with the name under which a `use` item makes it known.
struct Path<'a> {
    parts: Vec<&'a str>,
    name: &'a str,
    line: usize,
    /// Stands in a `pub use`.
    is_reexport: bool,
    /// Module in which it stands.
    module: Vec<&'a str>,
}

/// Returns all imports between different units of a crate. `root` is `lib` or `main`, the unit of the root file itself.
pub(crate) fn imports(root: &str, sources: &[Source]) -> Vec<Import> {
    let scanned: Vec<(&Source, Vec<Token>)> =
        sources.iter().map(|source| (source, without_tests(&tokens(&source.text)))).collect();
    let unit = |source: &'_ Source| source.module.first().cloned();
    let modules: Vec<&str> =
        sources.iter().filter_map(|source| source.module.first()).map(String::as_str).collect();
    let mut names = Names { root, modules, defined: BTreeMap::new() };
    for (source, tokens) in &scanned {
        let module = source.module.first().map_or(root, String::as_str);
        for pair in tokens.windows(3).filter(|three| three[0].text == "macro_rules") {
            names.defined.insert(pair[2].text.to_owned(), module);
        }
        for path in
            paths(source, tokens).iter().filter(|path| source.module.is_empty() && !path.name.is_empty())
        {
            let first = path.parts.iter().find(|part| !matches!(**part, "crate" | "self"));
            if let Some(module) = names.modules.iter().find(|module| Some(*module) == first).copied() {
                names.defined.insert(path.name.to_owned(), module);
            }
        }
    }
    let mut found = Vec::new();
    for (source, tokens) in &scanned {
        let from = unit(source).unwrap_or_else(|| root.to_owned());
        for path in paths(source, tokens) {
            let is_of_root = source.module.is_empty() && path.is_reexport;
            if let Some(to) = names.unit(&path).filter(|to| *to != from && !is_of_root) {
                let place = format!("{}:{}", source.file, path.line);
                found.push(Import { from: from.clone(), to: to.to_owned(), place });
            }
        }
    }
    found
}

impl Names<'_> {
    /// Returns the unit that a path leads to; `None` for another crate.
    fn unit(&self, path: &Path) -> Option<&str> {
        let mut module = path.module.clone();
        let mut parts = path.parts.iter().copied().peekable();
        match parts.peek().copied()? {
            "crate" => {
                parts.next();
                module.clear();
            }
            "self" => _ = parts.next(),
            "super" => {
                while parts.next_if_eq(&"super").is_some() {
                    module.pop();
                }
            }
            first if module.is_empty() && self.modules.contains(&first) => {}
            _ => return None,
        }
        let parts: Vec<&str> = module.into_iter().chain(parts).collect();
        let first = parts.first().filter(|first| **first != "*")?;
        let module = self.modules.iter().find(|module| *module == first);
        Some(module.or_else(|| self.defined.get(*first)).unwrap_or(&self.root))
    }
}

/// Returns the paths of a file in their order: each leaf of each `use` item, and each path in code. Paths that cannot
/// lead to a module of the crate are left out.
fn paths<'a>(source: &'a Source, tokens: &[Token<'a>]) -> Vec<Path<'a>> {
    let mut found = Vec::new();
    let (mut at, mut depth) = (0, 0);
    let mut inline: Vec<(usize, &str)> = Vec::new();
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text);
    while at < tokens.len() {
        let before = at.checked_sub(1).map_or("", text);
        let module =
            || source.module.iter().map(String::as_str).chain(inline.iter().map(|(_, name)| *name)).collect();
        match text(at) {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inline.retain(|(inside, _)| *inside <= depth);
            }
            "mod" if text(at + 2) == "{" => inline.push((depth + 1, text(at + 1))),
            "use" if text(at + 1) != "<" => {
                let mut leaves = Vec::new();
                at = leaf(tokens, at + 1, &[], &mut leaves);
                let is_reexport = matches!(before, "pub" | ")");
                found.extend(leaves.into_iter().map(|(parts, name, line)| Path {
                    parts,
                    name,
                    line,
                    is_reexport,
                    module: module(),
                }));
                continue;
            }
            _ if text(at + 1) == "::" && !matches!(before, "::" | ".") => {
                let line = tokens[at].line;
                let mut parts = vec![text(at)];
                while text(at + 1) == "::" && is_name(text(at + 2)) {
                    parts.push(text(at + 2));
                    at += 2;
                }
                let is_visibility = before == "in" && text(at + 1) == ")";
                if !is_visibility && parts.len() > 1 {
                    found.push(Path { parts, name: "", line, is_reexport: false, module: module() });
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Reads one tree of a `use` item from `at`, and returns the place behind it. Each leaf is its path, the name that it
/// gets here, and its line.
fn leaf<'a>(
    tokens: &[Token<'a>],
    mut at: usize,
    above: &[&'a str],
    leaves: &mut Vec<(Vec<&'a str>, &'a str, usize)>,
) -> usize {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text);
    let mut parts = above.to_vec();
    loop {
        match text(at) {
            "::" => at += 1,
            "{" => {
                at += 1;
                while !matches!(text(at), "}" | "") {
                    at = leaf(tokens, at, &parts, leaves);
                    at += usize::from(text(at) == ",");
                }
                return at + 1;
            }
            part if part == "*" || is_name(part) && part != "as" => {
                parts.push(part);
                at += 1;
            }
            _ => break,
        }
    }
    let line = tokens.get(at.saturating_sub(1)).map_or(0, |token| token.line);
    if parts.len() > above.len() && parts.len() > 1 && parts.last() == Some(&"self") {
        parts.pop();
    }
    let mut name = parts.last().copied().unwrap_or_default();
    if text(at) == "as" {
        name = text(at + 1);
        at += 2;
    }
    if parts.is_empty() {
        // An unexpected token: go on behind it.
        return at + 1;
    }
    leaves.push((parts, name, line));
    at
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Returns the tokens without the items that only tests have: those under `#[cfg(test)]`.
fn without_tests<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    let mut kept = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        if token.text == "#" && tokens.get(at + 1).is_some_and(|next| next.text == "[") {
            let end = closing(tokens, at + 1);
            let has = |word: &str| tokens[at..end].iter().any(|token| token.text == word);
            if has("cfg") && has("test") && !has("not") {
                at = item_end(tokens, end);
                continue;
            }
        }
        kept.push(*token);
        at += 1;
    }
    kept
}

/// Returns the place behind the bracket that closes the one at `at`.
fn closing(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(at) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

/// Returns the place behind the item that begins at `at`: behind its `;` or its block.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    while let Some(token) = tokens.get(at) {
        match token.text {
            ";" => return at + 1,
            "{" => return closing(tokens, at),
            "(" | "[" => at = closing(tokens, at),
            "}" => return at,
            _ => at += 1,
        }
    }
    at
}

/// Returns names, `::` and single other characters, without comments, literals and lifetimes.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        let length = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '"' => string(rest),
            '\'' => quote(rest),
            'r' if rest[1..].trim_start_matches('#').starts_with('"') => raw(rest),
            _ if is_name(rest) => {
                let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                // The prefix of a byte string or of a C string is no name.
                if !matches!(&rest[..length], "b" | "br" | "c" | "cr")
                    || !rest[length..].starts_with(['"', '#', '\''])
                {
                    found.push(Token { text: &rest[..length], line });
                }
                length
            }
            ':' if rest.starts_with("::") => {
                found.push(Token { text: &rest[..2], line });
                2
            }
            _ if c.is_whitespace() || c.is_alphanumeric() => c.len_utf8(),
            _ => {
                found.push(Token { text: &rest[..c.len_utf8()], line });
                c.len_utf8()
            }
        };
        line += rest[..length].matches('\n').count();
        at += length;
    }
    found
}

/// Returns the length of the string literal at the start of `text`.
fn string(text: &str) -> usize {
    let mut is_escaped = false;
    let end = text[1..].find(|c| {
        let is_end = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        is_end
    });
    end.map_or(text.len(), |end| end + 2)
}

/// Returns the length of the raw string literal at the start of `text`.
fn raw(text: &str) -> usize {
    let hashes = text[1..].find('"').unwrap_or(0);
    let open = hashes + 2;
    let close: String = once('"').chain((0..hashes).map(|_| '#')).collect();
    text[open..].find(&close).map_or(text.len(), |end| open + end + close.len())
}

/// Returns the length of the character literal or lifetime at the start of `text`.
fn quote(text: &str) -> usize {
    let mut inside = text[1..].chars();
    match (inside.next(), inside.next()) {
        (Some('\\'), _) => text[3..].find('\'').map_or(text.len(), |end| end + 4),
        (Some(c), Some('\'')) => c.len_utf8() + 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(module: &str, text: &str) -> Source {
        let module: Vec<String> =
            module.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
        Source { file: format!("{}.rs", module.join("/")), module, text: text.to_owned() }
    }

    /// Returns `from>to:line` for each import of a crate with the modules `a`, `b` and `c` and the given files.
    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let mut sources: Vec<Source> = files.iter().map(|(module, text)| source(module, text)).collect();
        sources.extend(["a", "b", "c"].map(|module| source(module, "")));
        let line = |import: &Import| import.place.rsplit(':').next().unwrap_or_default().to_owned();
        let shown = |import: &Import| format!("{}>{}:{}", import.from, import.to, line(import));
        imports("lib", &sources).iter().map(shown).collect()
    }

    #[test]
    fn use_items_and_paths_in_code_are_imports() {
        assert_eq!(found(&[("a", "use crate::b::X;\nfn f() { crate::c::g::<u8>() }")]), ["a>b:1", "a>c:2"]);
        assert_eq!(
            found(&[("a", "use crate::{\n    b::{self, X as Y},\n    c,\n};")]),
            ["a>b:2", "a>b:2", "a>c:3"]
        );
        assert_eq!(found(&[("a", "use super::b::*;\npub(in crate::b) fn f() {}")]), ["a>b:1"]);
        assert_eq!(
            found(&[("a", "use std::fmt; use b::X; fn f() -> impl X + use<'_> { x.crate_::y }")]),
            [""; 0]
        );
    }

    #[test]
    fn a_module_and_its_children_are_one_unit() {
        assert_eq!(
            found(&[("a::child", "use super::X; use crate::a::Y; use super::super::b::Z;")]),
            ["a>b:1"]
        );
        assert_eq!(
            found(&[("a", "mod inside { use super::X; use super::super::b::Z; }\nuse super::c;")]),
            ["a>b:1", "a>c:2"]
        );
    }

    #[test]
    fn a_name_of_the_root_leads_to_the_module_that_defines_it() {
        let root = ("", "pub use b::{X, Y as Z};\npub struct Own;");
        assert_eq!(
            found(&[root, ("a", "use crate::{X, Z};\nuse crate::Own;")]),
            ["a>b:1", "a>b:1", "a>lib:2"]
        );
        assert_eq!(found(&[("", "use b::X;\nfn f() { c::g() }")]), ["lib>b:1", "lib>c:2"]);
        assert_eq!(found(&[("b", "macro_rules! list { () => {} }"), ("a", "crate::list!();")]), ["a>b:1"]);
    }

    #[test]
    fn tests_comments_and_literals_are_no_imports() {
        assert_eq!(found(&[("a", "#[cfg(test)]\nmod tests { use crate::b; }\nuse crate::c;")]), ["a>c:3"]);
        assert_eq!(
            found(&[("a", "#[cfg(test)]\nfn f(x: [u8; 3]) -> u8 { crate::b::g() }\nuse crate::c;")]),
            ["a>c:3"]
        );
        assert_eq!(
            found(&[("a", "// crate::b::X\n/* crate::b::X */ const S: &str = \"\\\"crate::b::X\";")]),
            [""; 0]
        );
        assert_eq!(
            found(&[("a", "const S: &str = r#\"\"crate::b::X\"#; const C: char = '\"'; use crate::c;")]),
            ["a>c:1"]
        );
        assert_eq!(
            found(&[("a", "fn f<'a>(x: &'a str) { b'\\''; '\\\\'; \"\\\\\"; crate::c::g() }")]),
            ["a>c:1"]
        );
    }
}
