//! Does a rule refuse whatever comes? A rule with any condition that a new packet between pods may fail is a specific
//! policy of somebody, which is none of our business.

/// Drops or rejects every packet that opens a connection.
pub(super) fn refuses_all(rule: &str) -> bool {
    let words = words(rule);
    let mut words = words.iter().map(String::as_str);
    let (mut refuses, mut not) = (false, false);
    while let Some(word) = words.next() {
        let value = if word == "!" { "" } else { words.next().unwrap_or_default() };
        match word {
            "!" => {}
            "-m" if ["comment", "conntrack", "state"].contains(&value) => {}
            "--ctstate" | "--state" if value.split(',').any(|state| state == "NEW") != not => {}
            "-j" => refuses = ["DROP", "REJECT"].contains(&value),
            "--comment" | "--reject-with" => {}
            _ => return false,
        }
        not = word == "!";
    }
    refuses
}

/// As iptables-save(8) writes them: in double quotes where needed, with a backslash before what could be misread.
fn words(rule: &str) -> Vec<String> {
    let (mut words, mut word): (Vec<String>, Option<String>) = (Vec::new(), None);
    let (mut quoted, mut letters) = (false, rule.chars());
    while let Some(letter) = letters.next() {
        match letter {
            ' ' if !quoted => words.extend(word.take()),
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' => word.get_or_insert_default().extend(letters.next()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_apart_as_they_were_written() {
        let rule = r#"-m comment --comment "a \"b\" c\\d \'e\'" --x "" -j DROP"#;
        assert_eq!(words(rule), ["-m", "comment", "--comment", r#"a "b" c\d 'e'"#, "--x", "", "-j", "DROP"]);
        assert!(words("").is_empty());
    }

    #[test]
    fn only_a_rule_without_condition_refuses_all() {
        for rule in [
            "-j DROP",
            "-j REJECT --reject-with icmp-host-prohibited",
            r#"-m comment --comment "-s \"10.0.0.0/8\" -j ACCEPT" -j REJECT --reject-with icmp-port-unreachable"#,
            "-m comment --comment plain -j DROP",
            r#"-m comment --comment "" -m conntrack ! --ctstate RELATED,ESTABLISHED -j REJECT"#,
            "-m state --state INVALID,NEW -j DROP",
            "-m conntrack --ctstate NEW -j DROP",
        ] {
            assert!(refuses_all(rule), "{rule}");
        }
        for rule in [
            "",
            "-j ACCEPT",
            "-j KUBE-FORWARD",
            r#"-m comment --comment "-j DROP""#,
            r#"-m comment --comment "DROP" -j RETURN"#,
            "-m conntrack --ctstate INVALID -j DROP",
            "-m conntrack ! --ctstate NEW -j DROP",
            "-m conntrack --ctstate NEW --ctdir ORIGINAL -j DROP",
            "-s 192.0.2.0/24 -j DROP",
            "! -s 192.0.2.0/24 -j DROP",
            "-d 10.244.0.0/16 -j REJECT --reject-with icmp-port-unreachable",
            "! -i lo -j DROP",
            "-o eth0 -j DROP",
            "-p tcp -j REJECT --reject-with tcp-reset",
            "-m mark --mark 0x8000/0x8000 -j DROP",
            "-m limit --limit 5/sec -j DROP",
            "-m addrtype --dst-type BROADCAST -j DROP",
            "-g REFUSED",
        ] {
            assert!(!refuses_all(rule), "{rule}");
        }
    }
}
