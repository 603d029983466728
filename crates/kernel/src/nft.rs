//! Our rules and sets in nftables. Our rules are read by `nft -j`, and written by `nft -f -` in one transaction. All
//! else comes from nf_tables by netlink. Single elements of a set change without a process.

mod chains;
mod firewalld;
mod json;
mod netlink;
mod passage;
mod program;
mod script;
mod sets;
mod watch;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use plan::state::{NftChain, NftChainName, NftElement, NftTable};
use plan::underlay::{FirewallFacts, UnknownSender};
use plan::{Family, Object, Op, Verb};

use crate::command;
use crate::error::Cause;
use crate::socket::Netlink;
use sets::{SetName, Shape};

pub(crate) use passage::{Native, quotable};
pub use watch::FirewallWatch;

const NFT: &str = "nft";
/// Oldest supported version of nft: the first that writes comments, and lists tables without elements.
const OLDEST: [u32; 3] = [1, 0, 1];

/// Our objects in nftables, as read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    pub(crate) tables: Vec<NftTable>,
    pub(crate) chains: Vec<NftChain>,
    pub(crate) elements: Vec<NftElement>,
    /// Sets that have the names of ours, and whether their definition is right.
    sets: Vec<(Family, SetName, Shape)>,
    /// Families in which our table is dormant: the kernel ignores its rules.
    dormant: Vec<Family>,
    /// Families whose set `keeper` has its element.
    kept: Vec<Family>,
}

/// Access to nf_tables, by netlink and by the tool `nft`.
#[derive(Default)]
pub(crate) struct Nft {
    netlink: Option<Netlink>,
    /// Netlink port of that socket; 0 before it is opened.
    pub(crate) port: Arc<AtomicU32>,
    /// Chains and sets that packets of pods meet.
    pub(crate) watched: passage::WatchedChains,
    /// Dormant tables, whose rules the kernel ignores: protocol family and name.
    dormant: Vec<(u8, Box<str>)>,
    /// Tool that was checked last.
    tool: Option<Tool>,
}

/// File of `nft`, as it was checked.
struct Tool {
    file: PathBuf,
    /// Inode, change time (seconds and nanoseconds) and size, by which another version under the same name is detected.
    stamp: (u64, i64, i64, u64),
    /// Reason for which it cannot be used.
    lack: Option<Box<str>>,
}

impl Tool {
    /// Returns the tool in `file`, which is asked for its version by `version` unless it is the known one.
    fn check(
        known: Option<Self>,
        file: PathBuf,
        version: impl FnOnce() -> Result<String, Cause>,
    ) -> Result<Self, Box<str>> {
        let found = std::fs::metadata(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let stamp = (found.ino(), found.ctime(), found.ctime_nsec(), found.size());
        match known.filter(|known| (&known.file, known.stamp) == (&file, stamp)) {
            Some(known) => Ok(known),
            None => {
                let lack = lacks(&version().map_err(|cause| cause.to_string())?);
                Ok(Self { file, stamp, lack })
            }
        }
    }
}

impl Nft {
    /// Reads our rows, and sets the facts that only nftables can tell: `no_nft`, `tables` and `firewalld`. If reading
    /// fails, nftables counts as unusable, not as empty.
    pub(crate) fn read(&mut self, facts: &mut FirewallFacts) -> Rows {
        // A table may vanish after the list of tables was read.
        match self.try_read(facts).or_else(|_| self.try_read(facts)) {
            Ok(rows) => rows,
            Err(why) => {
                facts.no_nft = Some(why);
                Rows::default()
            }
        }
    }

    /// Returns the unknown senders in the sets of this reading. The kernel adds them on packets and sends no notification.
    pub(crate) fn unknown_senders(&mut self, rows: &Rows) -> Vec<UnknownSender> {
        let families = Family::ALL.into_iter().filter(|family| rows.has(*family, SetName::UnknownSenders));
        let mut all: Vec<UnknownSender> = families
            // A set that vanished a moment ago holds none; its loss is noticed elsewhere.
            .flat_map(|family| self.elements(family, SetName::UnknownSenders).unwrap_or_default())
            .collect();
        all.sort_unstable();
        all
    }

    /// Applies ops in one transaction. Peers that are too many for one message are added before the rules, in parts.
    /// `last` is the last reading; the result says if it is still valid.
    pub(crate) fn apply(&mut self, ops: &[Op], last: &mut Rows) -> Result<LastReading, Cause> {
        let (peers, rules) = apart(ops, last);
        let to_make = last.lack_peers(&peers);
        if rules.is_empty() && to_make.is_empty() {
            match self.ask(|netlink| netlink::change_peers(netlink, &peers)) {
                Ok(()) => {
                    last.change_peers(&peers);
                    return Ok(LastReading::Valid);
                }
                Err(cause) if peers.len() > netlink::PART => return Err(cause),
                // The script reports what is wrong with these addresses, if anything.
                Err(_) => {}
            }
        }
        // The kernel creates no chain in the transaction that wakes its table.
        self.run(&script::wake_script(last))?;
        if peers.len() <= netlink::PART {
            self.run(&script::of(&ops.iter().collect::<Vec<_>>(), last))?;
        } else {
            self.run(&script::peers_sets(&to_make, last))?;
            last.make_peers(&to_make);
            self.ask(|netlink| netlink::change_peers(netlink, &peers))?;
            self.run(&script::of(&rules, last))?;
        }
        Ok(LastReading::Outdated)
    }

    /// Renews the elements without which our rules in these families drop nothing.
    pub(crate) fn keep(&mut self, families: &[Family]) -> Result<(), Cause> {
        self.ask(|netlink| netlink::keep(netlink, families, sets::KEPT))
    }

    fn run(&mut self, script: &str) -> Result<(), Cause> {
        if script.is_empty() {
            return Ok(());
        }
        let done = command::run(NFT, &["-f", "-"], script);
        done.map(|_| ()).map_err(|cause| self.advise(cause))
    }

    fn try_read(&mut self, facts: &mut FirewallFacts) -> Result<Rows, Box<str>> {
        let tables = self.ask(netlink::tables).map_err(|cause| no_nf_tables(&cause))?;
        facts.tables = tables.iter().map(|table| table.to_string().into()).collect();
        self.dormant = tables.iter().filter(|table| table.is_dormant()).map(netlink::Table::key).collect();
        self.check_tool()?;
        let firewalld = facts.tables.iter().any(|table| **table == *firewalld::TABLE);
        facts.firewalld = firewalld.then(firewalld::read).flatten();
        let mut rows = Rows::default();
        for family in Family::ALL {
            if let Some(table) = tables.iter().find(|table| table.is_ours(family)) {
                self.add_table(&mut rows, family, table)?;
            }
        }
        Ok(rows)
    }

    fn add_table(&mut self, rows: &mut Rows, family: Family, table: &netlink::Table) -> Result<(), Box<str>> {
        if table.is_owned() {
            return Err(owned(table));
        }
        let unreadable = |why: String| format!("table {table} cannot be read: {why}");
        let list = ["-n", "-j", "-t", "list", "table", family.nft(), family.nft_table()];
        let text = command::run(NFT, &list, "").map_err(|cause| unreadable(cause.to_string()))?;
        let mut chains = json::chains(&text, family)
            .map_err(|why| unreadable(format!("nft's output about it cannot be parsed: {why}")))?;
        rows.tables.push(NftTable { family });
        if table.is_dormant() {
            rows.dormant.push(family);
        }
        self.add_sets(rows, family).map_err(|cause| unreadable(cause.to_string()))?;
        for chain in chains.iter_mut().filter(|chain| chain.unknown.is_none()) {
            chain.unknown = rows.trouble(chain).map(Into::into);
        }
        rows.chains.append(&mut chains);
        Ok(())
    }

    fn add_sets(&mut self, rows: &mut Rows, family: Family) -> Result<(), Cause> {
        let sets = self.ask(|netlink| netlink::sets(netlink, family))?;
        for name in SetName::ALL {
            if let Some(set) = sets.iter().find(|set| &*set.name == name.as_str()) {
                rows.sets.push((family, name, name.shape(set, family)));
            }
        }
        if rows.has(family, SetName::Peers) {
            let elements = self.elements(family, SetName::Peers)?.into_iter();
            rows.elements.extend(elements.map(|element| NftElement { address: element.address }));
            // The kernel lists them in no order, and every pass sorts what it is given.
            rows.elements.sort_unstable();
        }
        if rows.has(family, SetName::Keeper) && self.ask(|netlink| netlink::is_kept(netlink, family))? {
            rows.kept.push(family);
        }
        Ok(())
    }

    fn elements(&mut self, family: Family, set: SetName) -> Result<Vec<UnknownSender>, Cause> {
        self.ask(|netlink| netlink::elements(netlink, family, set))
    }

    fn ask<A>(&mut self, question: impl FnOnce(&mut Netlink) -> Result<A, Cause>) -> Result<A, Cause> {
        let netlink = match &mut self.netlink {
            Some(netlink) => netlink,
            none => {
                let netlink = none.insert(Netlink::netfilter()?);
                self.port.store(netlink.port, Ordering::Release);
                netlink
            }
        };
        question(netlink)
    }

    /// Checks the tool, once for each version of its file.
    fn check_tool(&mut self) -> Result<(), Box<str>> {
        let Some(file) = command::find(NFT) else {
            return Err("there is no nft in PATH: install nftables".into());
        };
        let tool = Tool::check(self.tool.take(), file, || command::run(NFT, &["-V"], ""))?;
        let lack = tool.lack.clone();
        self.tool = Some(tool);
        lack.map_or(Ok(()), Err)
    }

    /// Adds advice to the error of a refused transaction.
    fn advise(&mut self, cause: Cause) -> Cause {
        let Cause::Tool { tool, text } = cause else {
            return cause;
        };
        let advice = if text.contains("Operation not permitted") {
            let tables = self.ask(netlink::tables).unwrap_or_default();
            let ours = |table: &&netlink::Table| Family::ALL.iter().any(|family| table.is_ours(*family));
            let theirs = tables.iter().filter(ours).find(|table| table.is_owned());
            theirs.map_or_else(|| "CAP_NET_ADMIN is needed".into(), owned)
        } else if text.contains("Device or resource busy") {
            "rules of other programs in flannel's table use it: find them with `nft list ruleset` and delete them"
                .into()
        } else {
            return Cause::Tool { tool, text };
        };
        Cause::Tool { tool, text: format!("{text}; {advice}").into() }
    }
}

/// State of the last reading after a change of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastReading {
    /// Valid: it holds the change.
    Valid,
    /// Outdated: the rules must be read again.
    Outdated,
}

impl Rows {
    /// Returns the families in which peers are added, but no set for them exists.
    fn lack_peers(&self, changes: &[(Verb, IpAddr)]) -> Vec<Family> {
        let comes = |family| {
            move |(verb, address): &(Verb, IpAddr)| *verb != Verb::Delete && Family::of(*address) == family
        };
        let families = Family::ALL.into_iter().filter(|family| !self.has(*family, SetName::Peers));
        families.filter(|family| changes.iter().any(comes(*family))).collect()
    }

    fn make_peers(&mut self, families: &[Family]) {
        self.sets.retain(|(family, set, _)| *set != SetName::Peers || !families.contains(family));
        self.sets.extend(families.iter().map(|family| (*family, SetName::Peers, Shape::Right)));
    }

    fn change_peers(&mut self, changes: &[(Verb, IpAddr)]) {
        let changed: BTreeSet<IpAddr> = changes.iter().map(|(_, address)| *address).collect();
        self.elements.retain(|row| !changed.contains(&row.address));
        let come = changes.iter().filter(|(verb, _)| *verb != Verb::Delete);
        self.elements.extend(come.map(|(_, address)| NftElement { address: *address }));
    }

    /// Returns true if the set exists with our definition.
    fn has(&self, family: Family, set: SetName) -> bool {
        self.sets.contains(&(family, set, Shape::Right))
    }

    fn chain(&self, family: Family, name: &NftChainName) -> Option<&NftChain> {
        self.chains.iter().find(|chain| (chain.family, &chain.chain) == (family, name))
    }

    /// Describes why a chain of ours does not work.
    fn trouble(&self, chain: &NftChain) -> Option<String> {
        if matches!(chain.chain, NftChainName::Other(_)) {
            None
        } else if self.dormant.contains(&chain.family) {
            Some("its table is dormant".into())
        } else {
            let lost = script::sets_of(&chain.chain).iter().find(|set| !self.has(chain.family, **set));
            match lost {
                Some(lost) => Some(format!("set {} is missing or of another type", lost.as_str())),
                None => (chain.is_kept() && !self.kept.contains(&chain.family))
                    .then(|| "nobody has kept its rules in force".into()),
            }
        }
    }
}

/// Splits the ops into changes of the peers' sets and all others. Deletions from a set that does not exist are left
/// out.
fn apart<'a>(ops: &'a [Op], last: &Rows) -> (Vec<(Verb, IpAddr)>, Vec<&'a Op>) {
    let (mut peers, mut rules) = (Vec::new(), Vec::new());
    for op in ops {
        match &op.object {
            Object::NftElement(NftElement { address }) => peers.push((op.verb, *address)),
            _ => rules.push(op),
        }
    }
    peers.retain(|(verb, address)| *verb != Verb::Delete || last.has(Family::of(*address), SetName::Peers));
    (peers, rules)
}

fn owned(table: &netlink::Table) -> Box<str> {
    format!("another process owns table {table}, and only the owner may change it: end that process").into()
}

fn no_nf_tables(cause: &Cause) -> Box<str> {
    match cause.errno() {
        Some(libc::EPERM | libc::EACCES) => format!("{cause}: CAP_NET_ADMIN is needed").into(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
            "this kernel has no nf_tables: run modprobe nf_tables, or install the kernel's package of modules"
                .into()
        }
        _ => cause.to_string().into(),
    }
}

/// Returns what an nft lacks whose `nft -V` prints this text; `None` if it can be used.
fn lacks(output: &str) -> Option<Box<str>> {
    let version = output.split_whitespace().find_map(|word| word.strip_prefix('v'));
    let mut numbers = version.unwrap_or_default().split('.').map_while(|number| number.parse().ok());
    let version: [u32; 3] = std::array::from_fn(|_| numbers.next().unwrap_or(0));
    if version < OLDEST {
        let [major, minor, patch] = version;
        return Some(format!("nft {major}.{minor}.{patch} is too old: install 1.0.1 or newer").into());
    }
    let mut lines = output.split_whitespace().skip_while(|word| *word != "json:");
    (lines.nth(1) != Some("yes"))
        .then(|| "nft was built without JSON support: install your distribution's nftables package".into())
}

#[cfg(fuzzing)]
pub(crate) fn fuzz_messages(datagram: &[u8], packets: &[plan::passage::Packet]) {
    crate::message::parts(datagram).for_each(netlink::fuzz);
    watch::fuzz(datagram);
    passage::fuzz(datagram, packets);
}

#[cfg(fuzzing)]
pub(crate) fn fuzz_text(text: &str, family: Family) {
    let _ = (json::chains(text, family), lacks(text));
    firewalld::fuzz(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unusable_nft_is_reported_by_its_own_message() {
        let say = |version: &str, json: &str| {
            format!(
                "nftables v{version} (Lester Gooch #5)\n  cli:\t\teditline\n  json:\t\t{json}\n  minigmp:\tno\n"
            )
        };
        for version in ["1.0.6", "1.0.1", "1.1.5", "2.0"] {
            assert_eq!(lacks(&say(version, "yes")), None, "{version}");
        }
        let lack = |said: &str| lacks(said).map(String::from);
        let old = |version| Some(format!("nft {version} is too old: install 1.0.1 or newer"));
        assert_eq!(lack(&say("0.9.8", "yes")), old("0.9.8"));
        assert_eq!(lack(&say("1.0.0", "yes")), old("1.0.0"));
        assert_eq!(lack("what?"), old("0.0.0"));
        assert!(lack(&say("1.0.6", "no")).unwrap().starts_with("nft was built without JSON"));
        assert!(lack("nftables v1.0.6 (x)").unwrap().starts_with("nft was built without JSON"));
    }

    #[test]
    fn a_replaced_nft_binary_is_checked_again() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join(NFT);
        let says = |version: &str| Ok(format!("nftables v{version}\n  json:\t\tyes\n"));
        std::fs::write(&file, "old").unwrap();
        let old = Tool::check(None, file.clone(), || says("1.0.0")).unwrap();
        assert!(old.lack.is_some());
        let old = Tool::check(Some(old), file.clone(), || unreachable!("it is known")).unwrap();
        std::fs::write(place.path().join("new"), "newer").unwrap();
        std::fs::rename(place.path().join("new"), &file).unwrap();
        let new = Tool::check(Some(old), file, || says("1.0.6")).unwrap();
        assert_eq!(new.lack, None);
    }

    #[test]
    fn a_kernel_without_nf_tables_is_distinguished_from_a_missing_right() {
        let words = |errno| no_nf_tables(&Cause::Refused { errno, text: None });
        assert!(words(libc::EINVAL).starts_with("this kernel has no nf_tables: run modprobe nf_tables"));
        assert!(words(libc::EPROTONOSUPPORT).starts_with("this kernel has no nf_tables"));
        assert!(words(libc::EPERM).ends_with("CAP_NET_ADMIN is needed"));
        assert_eq!(&*words(libc::ENOMEM), "Cannot allocate memory (os error 12)");
    }
}
