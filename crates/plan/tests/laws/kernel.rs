//! A model of the kernel: the effect of each op on the rows, and the ops that are refused. It was written from the manuals and
//! from trials on a real kernel, never from the code under test. Rows have the kernel's own order, which a `State` lacks.

use plan::state::{Link, LinkKind, NftChain, NftTable, RoutePath, State, Sysctl};
use plan::{Family, LinkName, Object, Op, Row, Setting, Verb, for_each_kind};

macro_rules! rows {
    ($($table:ident: $variant:ident($payload:ty) of $row:ty,)*) => {
        /// Rows of every kind, in the kernel's order.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub(crate) struct Rows {
            $(pub(crate) $table: Vec<$row>,)*
        }

        impl Rows {
            pub(crate) fn state(&self) -> State {
                State { $($table: self.$table.iter().cloned().collect(),)* }
            }

            pub(crate) fn of(state: &State) -> Self {
                Self { $($table: state.$table.to_vec(),)* }
            }

            pub(crate) fn extend(&mut self, other: &Self) {
                $(self.$table.extend_from_slice(&other.$table);)*
            }
        }
    };
}
for_each_kind!(rows);

impl Rows {
    pub(crate) fn without_traffic_rules(state: &State) -> Self {
        let (nft_tables, nft_chains, nft_elements, iptables) = Default::default();
        Self { nft_tables, nft_chains, nft_elements, iptables, ..Self::of(state) }
    }

    pub(crate) fn link(&self, name: LinkName) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Deletes a link, and with it all rows on it or through it.
    pub(crate) fn drop_link(&mut self, name: LinkName) {
        self.links.retain(|link| link.name != name);
        self.sysctls.retain(|row| *row.path != *accept_ra(name));
        self.addresses.retain(|row| row.link != name);
        self.fdb.retain(|row| row.link != name);
        self.flush_neighbours(name);
        let lost: Vec<u32> = self.nexthops.iter().filter(|row| row.link == name).map(|row| row.id).collect();
        self.nexthops.retain(|row| row.link != name);
        self.routes.retain(|row| match row.path {
            RoutePath::Via { link, .. } | RoutePath::Link(link) => link != name,
            RoutePath::Nexthop(id) => !lost.contains(&id),
            _ => true,
        });
    }

    pub(crate) fn flush_neighbours(&mut self, name: LinkName) {
        self.neighbours.retain(|row| row.link != name);
    }
}

/// Returns the path of the only sysctl that flannel sets for a device.
pub(crate) fn accept_ra(link: LinkName) -> String {
    format!("net/ipv6/conf/{link}/accept_ra")
}

/// Rows of a kernel, and its other devices.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) rows: Rows,
    pub(crate) devices: Vec<Device>,
}

/// Device without a row of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    pub(crate) name: LinkName,
    /// True if routes may lead through it.
    pub(crate) passable: bool,
}

impl Kernel {
    /// Applies the ops, up to the first one that a kernel would refuse.
    pub(crate) fn apply(&mut self, ops: &[Op]) -> Result<(), String> {
        ops.iter().try_for_each(|op| self.apply_one(op))
    }

    pub(crate) fn apply_one(&mut self, op: &Op) -> Result<(), String> {
        match op.verb {
            Verb::Recreate | Verb::Delete => self.delete(&op.object),
            Verb::Add | Verb::Replace => {
                self.admits(op).map_err(|error| format!("{op}: {error}"))?;
                self.put(&op.object);
            }
        }
        Ok(())
    }

    fn delete(&mut self, object: &Object) {
        let rows = &mut self.rows;
        match object {
            Object::Sysctl(_) | Object::LinkUp(_) => {}
            Object::Link(link) => rows.drop_link(link.name),
            Object::Address(row) => remove_like(&mut rows.addresses, |have| have.cmp_key(row).is_eq()),
            Object::Fdb(row) => remove(&mut rows.fdb, row),
            Object::Neighbour(row) => remove(&mut rows.neighbours, row),
            Object::Nexthop(row) => {
                remove(&mut rows.nexthops, row);
                if !holds(&rows.nexthops, row) {
                    rows.routes.retain(|route| route.path != RoutePath::Nexthop(row.id));
                }
            }
            Object::Route(row) => remove_like(&mut rows.routes, |have| {
                let like = row.path == have.path || row.path == RoutePath::Other;
                have.cmp_key(row).is_eq() && have.protocol == row.protocol && like
            }),
            Object::Rule(row) => remove(&mut rows.rules, row),
            Object::NftTable(row) => {
                rows.nft_tables.retain(|have| have.family != row.family);
                rows.nft_chains.retain(|have| have.family != row.family);
                rows.nft_elements.retain(|have| Family::of(have.address) != row.family);
            }
            Object::NftChain(row) => {
                rows.nft_chains.retain(|have| have.cmp_key(row).is_ne());
                let filters = |have: &NftChain| have.family == row.family && have.chain.is_filter();
                if !rows.nft_chains.iter().any(filters) {
                    rows.nft_elements.retain(|have| Family::of(have.address) != row.family);
                }
            }
            Object::NftElement(row) => remove(&mut rows.nft_elements, row),
            Object::Iptables(row) => rows.iptables.retain(|have| have.cmp_key(row).is_ne()),
        }
    }

    /// Returns an error if the kernel would refuse the addition or change.
    fn admits(&self, op: &Op) -> Result<(), String> {
        let (rows, adds) = (&self.rows, op.verb == Verb::Add);
        match &op.object {
            Object::Sysctl(Setting { row, .. }) => {
                let held = rows.links.iter().any(|link| *row.path == *accept_ra(link.name));
                let is_of_ours = row.path.starts_with("net/ipv6/conf/flannel");
                refuse(is_of_ours && !held, "the device of this sysctl is not there")
            }
            Object::Link(link) if adds => {
                refuse(rows.link(link.name).is_some(), "the name is taken")?;
                let LinkKind::Vxlan(vxlan) = &link.kind else {
                    return Err("we make vxlan devices only".into());
                };
                let below = self.devices.iter().any(|device| Some(device.name) == vxlan.uplink);
                refuse(!below, "the device below is not there")
            }
            Object::Link(link) => refuse(
                !rows.link(link.name).is_some_and(|have| changeable(link, have)),
                "not to be changed in place",
            ),
            Object::LinkUp(name) => refuse(rows.link(*name).is_none(), "no such device"),
            Object::Address(row) => {
                refuse(adds == holds(&rows.addresses, row), "the address is there, or is not")?;
                self.is_there(row.link)
            }
            Object::Fdb(row) => self.is_there(row.link),
            Object::Neighbour(row) => self.is_there(row.link),
            Object::Nexthop(row) => {
                refuse(adds == holds(&rows.nexthops, row), "the id is taken, or is not")?;
                self.is_up(row.link)
            }
            Object::Route(row) => match row.path {
                RoutePath::Via { link, .. } | RoutePath::Link(link) => self.is_up(link),
                RoutePath::Nexthop(id) => {
                    refuse(rows.nexthops.iter().all(|row| row.id != id), "there is no such next hop")
                }
                _ => Ok(()),
            },
            Object::Rule(row) => refuse(adds == holds(&rows.rules, row), "the rule is there, or is not"),
            Object::NftTable(_) | Object::Iptables(_) => Ok(()),
            Object::NftChain(row) => {
                refuse(!holds(&rows.nft_tables, &NftTable { family: row.family }), "there is no such table")
            }
            Object::NftElement(row) => {
                let family = Family::of(row.address);
                let is_filter = |have: &NftChain| have.family == family && have.chain.is_filter();
                refuse(!rows.nft_chains.iter().any(is_filter), "there is no such set")
            }
        }
    }

    fn is_there(&self, name: LinkName) -> Result<(), String> {
        refuse(self.rows.link(name).is_none(), "no such device")
    }

    fn is_up(&self, name: LinkName) -> Result<(), String> {
        let up = match self.rows.link(name) {
            Some(link) => link.up,
            None => self.devices.iter().any(|device| device.name == name && device.passable),
        };
        refuse(!up, "the device is not there, or is down")
    }

    fn put(&mut self, object: &Object) {
        let rows = &mut self.rows;
        match object {
            Object::Sysctl(Setting { row, .. }) => put(&mut rows.sysctls, row),
            Object::Link(link) => self.put_link(link),
            Object::LinkUp(name) => {
                rows.links.iter_mut().filter(|link| link.name == *name).for_each(|link| link.up = true);
            }
            Object::Address(row) => put(&mut rows.addresses, row),
            Object::Fdb(row) => put(&mut rows.fdb, row),
            Object::Neighbour(row) => put(&mut rows.neighbours, row),
            Object::Nexthop(row) => put(&mut rows.nexthops, row),
            Object::Route(row) => put(&mut rows.routes, row),
            Object::Rule(row) => put(&mut rows.rules, row),
            Object::NftTable(row) => put(&mut rows.nft_tables, row),
            Object::NftChain(row) => put(&mut rows.nft_chains, row),
            Object::NftElement(row) => put(&mut rows.nft_elements, row),
            Object::Iptables(row) => put(&mut rows.iptables, row),
        }
    }

    /// Adds or changes a link. A new device is down and has the kernel's default sysctls; a new MAC address flushes its
    /// neighbours.
    fn put_link(&mut self, link: &Link) {
        let have = self.rows.link(link.name).cloned();
        let up = have.as_ref().is_some_and(|have| have.up);
        put(&mut self.rows.links, &Link { up, ..link.clone() });
        match have {
            None => put(&mut self.rows.sysctls, &default_accept_ra(link.name)),
            Some(have) if have.mac != link.mac => self.rows.flush_neighbours(link.name),
            Some(_) => {}
        }
    }
}

pub(crate) fn default_accept_ra(link: LinkName) -> Sysctl {
    Sysctl { path: accept_ra(link).into(), value: "1".into() }
}

fn refuse(fault: bool, what: &str) -> Result<(), String> {
    if fault { Err(what.into()) } else { Ok(()) }
}

fn holds<T: Row>(rows: &[T], row: &T) -> bool {
    rows.iter().any(|have| have.cmp_key(row).is_eq())
}

/// Replaces the first row of this key, the oldest, or adds one.
fn put<T: Row>(rows: &mut Vec<T>, row: &T) {
    match rows.iter_mut().find(|have| have.cmp_key(row).is_eq()) {
        Some(have) => *have = row.clone(),
        None => rows.push(row.clone()),
    }
}

fn remove<T: Row>(rows: &mut Vec<T>, row: &T) {
    remove_like(rows, |have| have == row);
}

/// Deletes the first row that matches. The kernel compares only the attributes that a request can name.
fn remove_like<T: Row>(rows: &mut Vec<T>, like: impl Fn(&T) -> bool) {
    if let Some(at) = rows.iter().position(like) {
        rows.remove(at);
    }
}

/// Returns true if `ip link change` can make the change. For a vxlan device (vxlan_changelink) that is another `local` of the
/// same family, `learning`, and the attributes of every device.
fn changeable(want: &Link, have: &Link) -> bool {
    let (LinkKind::Vxlan(want_kind), LinkKind::Vxlan(have_kind)) = (&want.kind, &have.kind) else {
        return false;
    };
    let mut same = have_kind.clone();
    same.learning = want_kind.learning;
    if same.local.is_ipv4() == want_kind.local.is_ipv4() {
        same.local = want_kind.local;
    }
    same == *want_kind && have.unknown.is_none()
}
