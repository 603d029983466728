//! Values of flags as in Go's package flag: each type reads a text and shows itself again.

use crate::probe::ProbeMode;
use std::fmt::{self, Display};
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use plan::state::MAIN_TABLE;

use super::FLANNEL_TABLE;

/// Value of one flag.
pub(super) trait Value {
    /// Sets the value from a text. After an error it is as before; the error says what is wrong with the text.
    fn set(&mut self, text: &str) -> Result<(), String>;

    /// Returns the value as text for the log.
    fn show(&self) -> String;

    /// Returns true if the name of the flag alone means true.
    fn is_switch(&self) -> bool {
        false
    }
}

impl Value for bool {
    /// Accepts the texts of Go's `strconv.ParseBool`.
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
            "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
            _ => return Err(format!("{text:?} is neither true nor false")),
        };
        Ok(())
    }

    fn show(&self) -> String {
        self.to_string()
    }

    fn is_switch(&self) -> bool {
        true
    }
}

impl Value for i64 {
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = integer(text)?;
        Ok(())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// Port; 0 and negative numbers mean none.
impl Value for u16 {
    fn set(&mut self, text: &str) -> Result<(), String> {
        let port = integer(text)?.max(0);
        *self = port.try_into().map_err(|_| format!("{port} is no port: the largest is 65535"))?;
        Ok(())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for String {
    fn set(&mut self, text: &str) -> Result<(), String> {
        text.clone_into(self);
        Ok(())
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl Value for PathBuf {
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = text.into();
        Ok(())
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

/// List that each text adds to. An empty text, as from a template's variable that is not set, adds nothing.
impl Value for Vec<String> {
    fn set(&mut self, text: &str) -> Result<(), String> {
        self.extend(Some(text).filter(|text| !text.is_empty()).map(String::from));
        Ok(())
    }

    fn show(&self) -> String {
        self.join(" ")
    }
}

/// Optional value; an empty text means none.
impl<T: FromStr<Err: Display> + Display> Value for Option<T> {
    fn set(&mut self, text: &str) -> Result<(), String> {
        let parse = || text.parse().map_err(|error| format!("{text:?}: {error}"));
        *self = if text.is_empty() { None } else { Some(parse()?) };
        Ok(())
    }

    fn show(&self) -> String {
        self.as_ref().map(ToString::to_string).unwrap_or_default()
    }
}

/// Addresses of a node, at most one per family, separated by commas as the Downward API's `status.hostIPs` writes them.
impl Value for Vec<IpAddr> {
    fn set(&mut self, text: &str) -> Result<(), String> {
        let parse = |text: &str| match text.trim().parse::<IpAddr>() {
            Ok(ip) => Ok(ip.to_canonical()),
            Err(error) => Err(format!("{text:?}: {error}")),
        };
        let ips: Self =
            text.split(',').filter(|text| !text.is_empty()).map(parse).collect::<Result<_, _>>()?;
        if ips.iter().filter(|ip| ip.is_ipv4()).count() > 1
            || ips.iter().filter(|ip| ip.is_ipv6()).count() > 1
        {
            return Err(format!("{text:?} has two addresses of one family"));
        }
        *self = ips;
        Ok(())
    }

    fn show(&self) -> String {
        let texts: Vec<_> = self.iter().map(ToString::to_string).collect();
        texts.join(",")
    }
}

/// Routing table by name or number. The kernel's own tables other than the main one are refused (rtnetlink(7)
/// `rtm_table`).
impl Value for u32 {
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = match (text, text.parse()) {
            ("main", _) => MAIN_TABLE,
            ("flannel", _) => FLANNEL_TABLE,
            (_, Ok(0 | 253 | 255)) => {
                return Err(format!("{text:?} is a table of the kernel's own: take another"));
            }
            (_, Ok(number)) => number,
            (_, Err(_)) => return Err(format!("{text:?} is neither main nor flannel nor a number")),
        };
        Ok(())
    }

    fn show(&self) -> String {
        if *self == MAIN_TABLE { "main".into() } else { self.to_string() }
    }
}

impl Value for Duration {
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = duration(text)?;
        Ok(())
    }

    fn show(&self) -> String {
        format!("{self:?}")
    }
}

/// Text that must appear in no log and no report.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// Returns the secret, for its recipient only.
    #[cfg(feature = "etcd")]
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.show())
    }
}

impl Value for Secret {
    fn set(&mut self, text: &str) -> Result<(), String> {
        self.0.set(text)
    }

    fn show(&self) -> String {
        if self.0.is_empty() { String::new() } else { "***".into() }
    }
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

impl Value for LogFormat {
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = match text {
            "text" => Self::Text,
            "json" => Self::Json,
            _ => return Err(format!("{text:?} is neither text nor json")),
        };
        Ok(())
    }

    fn show(&self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

impl Value for ProbeMode {
    fn set(&mut self, text: &str) -> Result<(), String> {
        *self = match text {
            "off" => Self::Off,
            "on-change" => Self::OnChange,
            "periodic" => Self::Periodic,
            _ => return Err(format!("{text:?} is none of off, on-change and periodic")),
        };
        Ok(())
    }

    fn show(&self) -> String {
        match self {
            Self::Off => "off",
            Self::OnChange => "on-change",
            Self::Periodic => "periodic",
        }
        .into()
    }
}

/// Parses a number like Go's `strconv.ParseInt` with base 0. 0x, 0o, 0b or a leading 0 give the base, and `_` may stand
/// between digits.
fn integer(text: &str) -> Result<i64, String> {
    let bad = || format!("{text:?} is no whole number");
    let (sign, number) = match text.as_bytes().first() {
        Some(b'-') => ("-", &text[1..]),
        Some(b'+') => ("", &text[1..]),
        _ => ("", text),
    };
    let lower = number.to_ascii_lowercase();
    let (base, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, &*lower),
    };
    let stray = digits.ends_with('_') || digits.contains("__") || (base == 10 && digits.starts_with('_'));
    if stray || digits.starts_with(['+', '-']) {
        return Err(bad());
    }
    i64::from_str_radix(&format!("{sign}{}", digits.replace('_', "")), base).map_err(|_| bad())
}

/// Parses one number and unit like Go's `time.ParseDuration`: `90s`, `5m`, `1.5h`, `300ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a time such as 90s, 5m or 1h");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
    let number: f64 = text[..digits].parse().map_err(|_| bad())?;
    let seconds = match &text[digits..] {
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(bad()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_in_go() {
        for (text, seconds) in [("300ms", 0.3), ("90s", 90.0), ("5m", 300.0), ("1.5h", 5400.0)] {
            assert_eq!(duration(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "5", "-5s", "5 m", "m", "1e400s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn whole_numbers_are_written_as_in_go() {
        for (text, number) in [
            ("0", 0),
            ("-1", -1),
            ("+7", 7),
            ("1_000", 1000),
            ("0x1F", 31),
            ("0X_1f", 31),
            ("-0b101", -5),
            ("0o17", 15),
            ("017", 15),
            ("0_17", 15),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(integer(text), Ok(number), "{text}");
        }
        for text in [
            "",
            "-",
            "_1",
            "1_",
            "1__0",
            "0x",
            "0x1_",
            "08",
            "0b2",
            "1.0",
            "1e3",
            "--1",
            "0x-1",
            "é",
            "9223372036854775808",
        ] {
            assert!(integer(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_negative_port_means_none() {
        let mut port = 7_u16;
        assert!(port.set("65536").is_err() && port == 7);
        assert!(port.set("-1").is_ok() && port == 0);
        assert!(port.set("0x1F91").is_ok() && port == 8081);
    }

    #[test]
    fn a_routing_table_has_a_name_or_a_number() {
        let mut table = 0_u32;
        for (text, number, shown) in
            [("main", 254, "main"), ("254", 254, "main"), ("flannel", 8472, "8472"), ("100", 100, "100")]
        {
            table.set(text).unwrap();
            assert_eq!((table, &*table.show()), (number, shown));
        }
        for text in ["", "0", "253", "255", "local", "-1", "4294967296"] {
            assert!(table.set(text).is_err() && table == 100, "{text}");
        }
    }

    #[test]
    fn a_list_grows_by_every_text_that_is_not_empty() {
        let mut list: Vec<String> = Vec::new();
        ["b", "", "a"].iter().for_each(|text| list.set(text).unwrap());
        assert_eq!((list.show(), list.len()), ("b a".into(), 2));
    }

    #[test]
    fn a_secret_is_never_shown() {
        let mut secret = Secret::default();
        assert_eq!(secret.show(), "");
        secret.set("hunter2").unwrap();
        assert_eq!(format!("{} {secret:?} {:?}", secret.show(), Some(secret.clone())), "*** *** Some(***)");
    }
}
