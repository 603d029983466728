//! Kernel objects that twill may own, as observed or as desired: one type serves both, so that equality is health.
//!
//! A state is in normal form: it holds only what we decide. Values that the kernel fills in (indexes, counters, flags,
//! learned FDB entries) are left out when the kernel is read. An attribute that is read and not understood goes into
//! `unknown`, which no desired row has. Such a row therefore differs and is replaced.

mod address;
mod fdb;
pub mod iptables;
mod link;
mod neighbour;
mod nexthop;
mod nft;
mod route;
mod rule;
mod sysctl;
mod traffic_rule;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::family::Family;
use crate::name::LinkName;
use crate::owned::{Owned, Writer};
use crate::table::{Row, Table};

pub use address::Address;
pub use fdb::FdbEntry;
pub use iptables::{IptablesChain, IptablesTable, Variant};
pub use link::{Link, LinkKind, Vxlan};
pub use neighbour::Neighbour;
pub use nexthop::Nexthop;
pub use nft::{NftChain, NftChainName, NftElement, NftTable};
pub use route::{MAIN_TABLE, Route, RoutePath, WORST_METRIC};
pub use rule::Rule;
pub(crate) use sysctl::{FORWARD, FORWARD_IPV6};
pub use sysctl::{Setting, Sysctl};
pub use traffic_rule::{Match, Net, RuleVerdict, TrafficRule};

/// Text of what was read and not understood; `None` in every desired row.
pub type Unknown = Option<Box<str>>;

/// Generic part of a kind of kernel object. [`for_each_kind!`](crate::for_each_kind) lists the kinds.
pub trait Kind: Row + fmt::Display {
    /// Name of the kind in metrics; kinds that are applied in one transaction share one.
    const NAME: &'static str;
    /// Place among the ops of a pass.
    const RANK: Rank;
    /// Daemons that write such objects: twill alone, or flannel too.
    const WRITER: Writer = Writer::Flannel;

    /// Returns the link that the row stands on or leads through, and with which it is deleted.
    fn link(&self) -> Option<LinkName> {
        None
    }

    /// Returns when the row disappears without an op of its own.
    fn goes(&self, losses: &Losses) -> Goes {
        self.link().map_or(Goes::Never, |link| losses.of_link(link))
    }

    /// Returns true if the row is ours to delete when nothing is desired under its key. `observed` is the observed state.
    /// A desired key is ours, whatever the kernel holds under it.
    fn is_ours(&self, owned: &Owned, observed: &State) -> bool;
}

/// Places of a kind's ops among all ops of a pass (ARCHITECTURE.md, "Order of ops").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Place of additions and changes.
    pub put: u8,
    /// Place of deletions.
    pub delete: u8,
}

/// Time at which a row disappears without an op of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goes {
    Never,
    /// Before anything is added: its link is deleted to be created again, or flushed by a new MAC.
    First,
    /// After everything else: the object that it depends on is deleted for good.
    Last,
}

/// Objects that disappear along with ops on links, next hops and chains.
#[derive(Debug, Default)]
pub struct Losses {
    /// Links that are deleted to be created again.
    pub remade: Vec<LinkName>,
    /// Links that are deleted for good.
    pub dropped: Vec<LinkName>,
    /// Links that stay but lose their neighbours, since their MAC changes.
    pub flushed: Vec<LinkName>,
    /// Ids of next hops that disappear, each with its time.
    pub nexthops: BTreeMap<u32, Goes>,
    /// Families without a desired source filter: their set of senders disappears with its chain.
    pub unfiltered: Vec<Family>,
}

impl Losses {
    /// Returns when the rows on that link disappear.
    pub fn of_link(&self, link: LinkName) -> Goes {
        if self.remade.contains(&link) {
            Goes::First
        } else if self.dropped.contains(&link) {
            Goes::Last
        } else {
            Goes::Never
        }
    }
}

/// Registry of kinds, in the order of their tables: sysctls, the kinds of [`for_each_netlink_kind!`](crate::for_each_netlink_kind),
/// and traffic rules. It passes `table: Variant(Payload) of Row` for each kind to the macro of the given name. The payload is
/// what an op carries; a payload that is not the row itself dereferences to it.
#[macro_export]
macro_rules! for_each_kind {
    ($then:ident) => {
        $crate::for_each_netlink_kind! {
            $then
            [sysctls: Sysctl($crate::state::Setting) of $crate::state::Sysctl,]
            [
                nft_tables: NftTable($crate::state::NftTable) of $crate::state::NftTable,
                nft_chains: NftChain($crate::state::NftChain) of $crate::state::NftChain,
                nft_elements: NftElement($crate::state::NftElement) of $crate::state::NftElement,
                iptables: Iptables($crate::state::IptablesChain) of $crate::state::IptablesChain,
            ]
        }
    };
}

/// Registry of the kinds that rtnetlink(7) reads and writes; the crate `kernel` implements each of them.
#[macro_export]
macro_rules! for_each_netlink_kind {
    ($then:ident) => {
        $crate::for_each_netlink_kind! { $then [] [] }
    };
    ($then:ident [$($before:tt)*] [$($after:tt)*]) => {
        $then! {
            $($before)*
            links: Link(Box<$crate::state::Link>) of $crate::state::Link,
            addresses: Address($crate::state::Address) of $crate::state::Address,
            fdb: Fdb($crate::state::FdbEntry) of $crate::state::FdbEntry,
            neighbours: Neighbour($crate::state::Neighbour) of $crate::state::Neighbour,
            nexthops: Nexthop($crate::state::Nexthop) of $crate::state::Nexthop,
            routes: Route($crate::state::Route) of $crate::state::Route,
            rules: Rule($crate::state::Rule) of $crate::state::Rule,
            $($after)*
        }
    };
}

macro_rules! state {
    ($($table:ident: $variant:ident($payload:ty) of $row:ty,)*) => {
        /// All rows, by kind. Kinds without rows are left out of the JSON form.
        ///
        /// ```json
        /// {"addresses": [{"link": "flannel.1", "address": "10.244.34.0/32"}],
        ///  "fdb": [{"link": "flannel.1", "mac": "1e:aa:75:b8:f4:fa", "remote": "192.168.100.12"}],
        ///  "routes": [{"table": 254, "destination": "10.244.46.0/24", "protocol": 84,
        ///              "path": {"via": {"gateway": "10.244.46.0", "link": "flannel.1", "onlink": true}}}]}
        /// ```
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct State {
            $(
                #[serde(skip_serializing_if = "Table::is_empty")]
                pub $table: Table<$row>,
            )*
        }
    };
}
for_each_kind!(state);

/// Displays what was not understood, in brackets behind the rest of the row.
pub(crate) struct Aside<'a>(pub(crate) &'a Unknown);

impl fmt::Display for Aside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(text) => write!(f, " [{text}]"),
            None => Ok(()),
        }
    }
}
