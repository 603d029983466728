//! Finds and runs the programs of iptables. Those of the legacy variant create every table that they are asked about.
//! The tools therefore run only if a table is loaded.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::OpenOptionsExt;

use plan::Family;
use plan::state::{IptablesTable, Variant};

use super::listing::Listing;
use crate::error::Cause;
use crate::{command, tool_paths};

/// The programs of one variant and family.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    pub(super) variant: Variant,
    pub(super) family: Family,
    pub(super) save: Box<str>,
    restore: Box<str>,
}

impl Tools {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let each = |variant| Family::ALL.into_iter().map(move |family| (variant, family));
        Variant::ALL.into_iter().flat_map(each).filter_map(|(variant, family)| Self::of(variant, family))
    }

    /// Returns the programs of this variant and family; `None` if they are not installed.
    pub(super) fn of(variant: Variant, family: Family) -> Option<Self> {
        let (base, tag) = (base(family), if variant == Variant::Nft { "nft" } else { "legacy" });
        let named = |base: &str| Self {
            variant,
            family,
            save: format!("{base}-save").into(),
            restore: format!("{base}-restore").into(),
        };
        let own = named(&format!("{base}-{tag}"));
        let plain = || {
            Some(named(base)).filter(|tools| tools.are_there() && default_variant(family) == Some(variant))
        };
        Some(own).filter(Self::are_there).or_else(plain)
    }

    fn are_there(&self) -> bool {
        [&self.save, &self.restore].into_iter().all(|name| command::find(name).is_some())
    }

    /// Lists all tables that exist.
    pub(super) fn listing(&self) -> Result<Listing, Cause> {
        if self.variant == Variant::Legacy && loaded(self.family).is_empty() {
            return Ok(Listing::default());
        }
        Ok(Listing::parse(&command::list(&self.save)?))
    }

    /// Returns the rules of our chain, also in a table that iptables-save cannot read. `None` if the chain does not
    /// exist.
    pub(super) fn chain(&self, table: IptablesTable) -> Option<Vec<Box<str>>> {
        let program = self.save.strip_suffix("-save").unwrap_or(&self.save);
        let text = command::run(program, &["-t", &table.to_string(), "-S", table.chain()], "").ok()?;
        let start = format!("-A {} ", table.chain());
        Some(
            text.lines()
                .filter_map(|line| line.strip_prefix(&start))
                .map(|rule| rule.trim_end().into())
                .collect(),
        )
    }

    /// Runs a script; rules that it does not name stay untouched. Fails with [`Cause::Busy`] while another program
    /// holds the lock.
    pub(super) fn restore(&self, script: &str) -> Result<(), Cause> {
        self.check_lock()?;
        let done = command::run(&self.restore, &["--noflush"], script);
        done.map(|_| ()).map_err(|cause| match cause {
            Cause::Tool { text, .. } if text.contains("xtables lock") => self.locked(),
            Cause::Tool { tool, text } => Cause::Tool { tool, text: explained(&text, script).into() },
            cause => cause,
        })
    }

    /// Fails if another program holds the lock of iptables-legacy. It is checked before a process is started.
    pub(super) fn check_lock(&self) -> Result<(), Cause> {
        if self.variant == Variant::Legacy && is_locked() { Err(self.locked()) } else { Ok(()) }
    }

    fn locked(&self) -> Cause {
        let lock = tool_paths::xtables_lock();
        let lock = lock.display();
        Cause::Busy(format!(
            "another program holds iptables' lock {lock}; retrying until it is free. If it stays locked, end the program \
             that `fuser {lock}` names"
        ).into())
    }
}

/// Describes tables of iptables-legacy that are loaded but cannot be read, since its programs are missing.
pub(super) fn unreadable_tables() -> Option<Box<str>> {
    let mut families = Family::ALL.into_iter();
    let unread =
        |family: &Family| !loaded(*family).is_empty() && Tools::of(Variant::Legacy, *family).is_none();
    let family = families.find(unread)?;
    let names = loaded(family).split_whitespace().collect::<Vec<_>>().join(", ");
    Some(
        format!(
            "the {family} tables {names} of iptables-legacy are loaded, but iptables-legacy is not installed"
        )
        .into(),
    )
}

/// Returns true if another program holds the lock. It is checked first, since iptables waits for it, some versions for
/// ever.
fn is_locked() -> bool {
    let lock = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(tool_paths::xtables_lock());
    lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Adds the script's line to an error that names only its number.
fn explained(text: &str, script: &str) -> String {
    let number = text.rsplit("line").next().unwrap_or_default().trim_start_matches([':', ' ']);
    let number = number.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok());
    let line = number.and_then(|number: usize| script.lines().nth(number.checked_sub(1)?));
    match line {
        Some(line) if line.starts_with("-X") => {
            format!("{text} (`{line}`): rules of other programs jump to that chain; delete those rules")
        }
        Some(line) => format!("{text} (`{line}`)"),
        None => text.into(),
    }
}

/// Returns the variant of plain `iptables` or `ip6tables`. The name of its file usually tells it; otherwise the program
/// is run.
pub(super) fn default_variant(family: Family) -> Option<Variant> {
    let file = command::find(base(family))?;
    let name = file.canonicalize().unwrap_or(file);
    let name = name.file_name().unwrap_or_default().to_string_lossy();
    match (name.contains("nft"), name.contains("legacy")) {
        (true, false) => Some(Variant::Nft),
        (false, true) => Some(Variant::Legacy),
        _ => command::run(base(family), &["--version"], "").ok().map(|text| variant(&text)),
    }
}

/// Returns the variant that an output of `--version` names. Before 1.8 only the legacy variant existed, and none was
/// named.
fn variant(version: &str) -> Variant {
    if version.contains("nf_tables") { Variant::Nft } else { Variant::Legacy }
}

fn base(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "iptables",
        Family::Ipv6 => "ip6tables",
    }
}

/// Returns the tables of iptables-legacy that are loaded in this network namespace, one a line. Only root may read the
/// list. It is empty for other users, who cannot use the tables either.
pub(super) fn loaded(family: Family) -> String {
    let file = match family {
        Family::Ipv4 => "ip_tables_names",
        Family::Ipv6 => "ip6_tables_names",
    };
    fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default()
}

/// Returns true if the kernel has no nftables, so that iptables-nft is useless.
pub(super) fn lacks_kernel(cause: &Cause) -> bool {
    matches!(cause, Cause::Tool { text, .. } if text.contains("Failed to initialize nft"))
}

#[cfg(fuzzing)]
pub(super) fn fuzz(text: &str) {
    let _ = (variant(text), explained(text, text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_names_the_variant() {
        for (text, expected) in [
            ("iptables v1.8.9 (nf_tables)\n", Variant::Nft),
            ("iptables v1.8.7 (legacy)\n", Variant::Legacy),
            ("iptables v1.6.1\n", Variant::Legacy),
        ] {
            assert_eq!(variant(text), expected, "{text}");
        }
    }

    #[test]
    fn a_failed_line_is_reported() {
        let script = "*filter\n:FLANNEL-FWD - [0:0]\n-A FORWARD -j FOO\n-X FLANNEL-FWD\nCOMMIT\n";
        for (text, expected) in [
            ("iptables-restore: line 3 failed", "iptables-restore: line 3 failed (`-A FORWARD -j FOO`)"),
            ("no FOO Error occurred at line: 3", "no FOO Error occurred at line: 3 (`-A FORWARD -j FOO`)"),
            (
                "iptables-nft-restore v1.8.9 (nf_tables): line 4: CHAIN_DEL failed (Device or resource busy)",
                "iptables-nft-restore v1.8.9 (nf_tables): line 4: CHAIN_DEL failed (Device or resource busy) (`-X \
                 FLANNEL-FWD`): rules of other programs jump to that chain; delete those rules",
            ),
            ("line 0 failed", "line 0 failed"),
            ("line 9 failed", "line 9 failed"),
            ("it took longer than 5 s", "it took longer than 5 s"),
        ] {
            assert_eq!(explained(text, script), expected);
        }
    }

    #[test]
    fn an_iptables_error_reveals_a_kernel_without_nftables() {
        let cause = |text: &str| Cause::Tool { tool: "iptables-nft-save".into(), text: text.into() };
        let words = "iptables-nft-save v1.8.9 (nf_tables): Failed to initialize nft: Protocol not supported";
        assert!(lacks_kernel(&cause(words)) && !lacks_kernel(&cause("it took longer than 5 s")));
    }
}
