//! Carries out ops in their order, many per send, and reports the outcome of each. An op that fails never stops the
//! others.

use std::slice;

use plan::state::{Address, Link, LinkKind, Rule, Sysctl};
use plan::{LinkName, Object, Op, Verb};

use crate::error::{Cause, Error};
use crate::link::Devices;
use crate::wire::Message;
use crate::{Kernel, addr, fdb, firewall, link, neigh, nexthop, route, rule, sysctl};

/// Outcome of one op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Carried out.
    Done,
    /// Unnecessary: the object to create exists and is equal.
    Already,
    /// Unnecessary: the object to delete does not exist.
    Gone,
    /// Failed, as far as the kernel reports.
    Failed(Error),
}

impl Kernel {
    /// Carries out the ops and returns one outcome for each, in the same order.
    pub fn apply(&mut self, ops: &[Op]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(ops.len());
        let mut known = None;
        for run in ops.chunk_by(go_together) {
            if firewall::is_rule(&run[0].object) {
                outcomes.append(&mut self.change_rules(run));
                continue;
            }
            let devices = match known.take() {
                Some(devices) => Ok(devices),
                None => self.devices(),
            };
            match devices {
                Ok(devices) => {
                    outcomes.append(&mut self.run(run, &devices));
                    let moved = run.iter().any(|op| matches!(op.object, Object::Link(_)));
                    known = (!moved).then_some(devices);
                }
                Err(error) => outcomes.extend(run.iter().map(|op| failed(op, error.cause.clone()))),
            }
        }
        outcomes
    }

    /// Changes traffic rules: all of the ops succeed, or all fail with the same cause.
    fn change_rules(&mut self, ops: &[Op]) -> Vec<Outcome> {
        let done = self.firewall.apply(ops);
        let outcome = |op| done.as_ref().map_or_else(|cause| failed(op, cause.clone()), |()| Outcome::Done);
        ops.iter().map(outcome).collect()
    }

    fn run(&mut self, ops: &[Op], devices: &Devices) -> Vec<Outcome> {
        let (mut requests, mut settled) = (Vec::with_capacity(ops.len()), Vec::with_capacity(ops.len()));
        for op in ops {
            settled.push(match prepare(op, devices) {
                Ok(Step::Send(request)) => {
                    requests.push(request);
                    None
                }
                Ok(step) => Some(self.alone(step, devices)),
                Err(link) => Some(Err(Cause::NoDevice(link))),
            });
        }
        self.echoes.foresee(ops, devices);
        let mut answers = self.netlink.batch(requests).into_iter();
        let mut outcome = |(op, settled): (&Op, Option<_>)| match settled.or_else(|| answers.next()) {
            Some(Err(cause)) => self.judge(op, cause, devices),
            _ => Outcome::Done,
        };
        ops.iter().zip(settled).map(&mut outcome).collect()
    }

    fn alone(&mut self, step: Step<'_>, devices: &Devices) -> Result<(), Cause> {
        match step {
            Step::Sysctl(row) => self.set(row, devices),
            Step::Rules(op) => self.firewall.apply(slice::from_ref(op)),
            Step::Send(request) => self.netlink.ask_each([request]),
            Step::InTurn(requests) => self.netlink.ask_each(requests),
            Step::Address(row, index) => self.replace_address(row, index, devices),
            Step::Rule(row) => {
                // If no rule exists yet, only the result of the second request matters.
                let _ = self.netlink.ask_each([rule::clear(row)]);
                self.netlink.ask_each([rule::add(row)])
            }
        }
    }

    /// Writes a sysctl. If the file is read-only, as in containers, netlink sets some settings of a device.
    fn set(&mut self, row: &Sysctl, devices: &Devices) -> Result<(), Cause> {
        let refused = match sysctl::write(row) {
            Err(cause) if cause.is_denial() => cause,
            other => return other,
        };
        match sysctl::message(row, devices) {
            Some(message) => self.netlink.ask_each([message]),
            None => Err(refused),
        }
    }

    /// Replaces an address. In place, the kernel changes lifetimes and little else. A device's routes go with its last
    /// address. So the address is deleted only if it still differs from the desired one.
    fn replace_address(&mut self, row: &Address, index: u32, devices: &Devices) -> Result<(), Cause> {
        self.netlink.ask_each([addr::add(row, index)])?;
        let now = self.addresses(devices).map_err(|error| error.cause)?;
        if now.iter().any(|seen| seen.row() == *row) {
            return Ok(());
        }
        self.netlink.ask_each([addr::delete(row, index), addr::add(row, index)])
    }

    /// Turns the cause of an error into an outcome. An error is no failure if it means that there was nothing to do. A
    /// route that was refused as invalid is tried once more in two steps.
    fn judge(&mut self, op: &Op, cause: Cause, devices: &Devices) -> Outcome {
        let gone = |errno| [libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL].contains(&errno);
        match (&op.object, &cause) {
            (_, Cause::NoDevice(_)) if deletes(op) => Outcome::Gone,
            (_, Cause::Refused { errno, .. }) if deletes(op) && gone(*errno) => Outcome::Gone,
            (Object::Rule(_), Cause::Refused { errno: libc::EEXIST, .. }) => Outcome::Already,
            (Object::Link(link), Cause::Refused { errno: libc::EEXIST, .. }) => {
                self.compare(op, link, cause, devices)
            }
            (Object::Route(row), Cause::Refused { errno: libc::EINVAL, .. }) if !deletes(op) => {
                let again = route::add_in_steps(row, devices).map(|steps| self.netlink.ask_each(steps));
                again.unwrap_or(Err(cause)).map_or_else(|cause| failed(op, cause), |()| Outcome::Done)
            }
            _ => failed_beside(op, cause, devices),
        }
    }

    /// Compares a device that was to be created with the existing one, and returns the outcome.
    fn compare(&mut self, op: &Op, link: &Link, cause: Cause, before: &Devices) -> Outcome {
        match self.devices().map(|devices| devices.row(link.name)) {
            Err(error) => failed(op, error.cause),
            // A device of another name has this VNI and port.
            Ok(None) => failed_beside(op, cause, before),
            Ok(Some(there)) if there == (Link { up: there.up, ..link.clone() }) => Outcome::Already,
            Ok(Some(there)) => failed(op, Cause::Differs(there.to_string().into())),
        }
    }
}

/// Form in which an op is sent to the kernel.
enum Step<'a> {
    Send(Message),
    InTurn(Vec<Message>),
    /// Replacement of an address, which the kernel supports only in part.
    Address(&'a Address, u32),
    /// Replacement of a policy rule, which the kernel does not support at all.
    Rule(&'a Rule),
    /// Write of a sysctl, whatever the verb: a sysctl cannot be absent.
    Sysctl(&'a Sysctl),
    /// Change of a traffic rule.
    Rules(&'a Op),
}

fn go_together(a: &Op, b: &Op) -> bool {
    match (firewall::is_rule(&a.object), firewall::is_rule(&b.object)) {
        (true, true) => firewall::together(a, b),
        (false, false) => !stands_alone(a) && !stands_alone(b),
        _ => false,
    }
}

/// Returns true if an op is sent alone. Later ops may depend on a changed device, and a batch holds only ops of one
/// message.
fn stands_alone(op: &Op) -> bool {
    match op.object {
        Object::Link(_) | Object::LinkUp(_) | Object::Sysctl(_) => true,
        Object::Address(_) | Object::Rule(_) => op.verb == Verb::Replace,
        _ => false,
    }
}

/// Builds the step for an op. The error is the name of a device that does not exist.
fn prepare<'a>(op: &'a Op, devices: &Devices) -> Result<Step<'a>, LinkName> {
    let index = |link: LinkName| devices.index(link).ok_or(link);
    let delete = deletes(op);
    Ok(Step::Send(match (&op.object, op.verb) {
        (Object::Sysctl(setting), _) => return Ok(Step::Sysctl(&setting.row)),
        (Object::Link(link), Verb::Add) => link::add(link, devices)?,
        (Object::Link(link), Verb::Replace) => return Ok(Step::InTurn(link::replace(link, devices)?)),
        (Object::Link(link), _) => link::delete(link.name),
        (Object::LinkUp(name), _) => link::set_up(*name, !delete),
        (Object::Address(row), Verb::Replace) => return Ok(Step::Address(row, index(row.link)?)),
        (Object::Address(row), _) => (if delete { addr::delete } else { addr::add })(row, index(row.link)?),
        (Object::Fdb(row), _) => (if delete { fdb::delete } else { fdb::add })(row, index(row.link)?),
        (Object::Neighbour(row), _) => {
            (if delete { neigh::delete } else { neigh::add })(row, index(row.link)?)
        }
        (Object::Nexthop(row), _) if delete => nexthop::delete(row.id),
        (Object::Nexthop(row), _) => nexthop::add(row, index(row.link)?),
        (Object::Route(row), _) => (if delete { route::delete } else { route::add })(row, devices)?,
        (Object::Rule(row), Verb::Replace) => return Ok(Step::Rule(row)),
        (Object::Rule(row), _) => (if delete { rule::delete } else { rule::add })(row),
        (Object::NftTable(_) | Object::NftChain(_) | Object::NftElement(_) | Object::Iptables(_), _) => {
            return Ok(Step::Rules(op));
        }
    }))
}

fn deletes(op: &Op) -> bool {
    matches!(op.verb, Verb::Delete | Verb::Recreate)
}

/// Advice for a kernel that cannot create a vxlan device, the only kind of device that we create.
const NO_VXLAN: &str = "; this kernel has no vxlan: run modprobe vxlan, install the kernel's package of modules, or use \
                        the backend host-gw, which needs no module";

fn failed(op: &Op, cause: Cause) -> Outcome {
    let unsupported = cause.errno() == Some(libc::EOPNOTSUPP);
    let mut error = Error::new(op.to_string(), cause);
    if unsupported && op.verb == Verb::Add && matches!(op.object, Object::Link(_)) {
        error.advice = NO_VXLAN.into();
    }
    Outcome::Failed(error)
}

/// Returns a failure as [`failed`] does, and names the device that is in the way, if there is one.
fn failed_beside(op: &Op, cause: Cause, devices: &Devices) -> Outcome {
    let advice = cause.errno().and_then(|errno| in_the_way(op, errno, devices));
    match (failed(op, cause), advice) {
        (Outcome::Failed(error), Some(advice)) => Outcome::Failed(Error { advice: advice.into(), ..error }),
        (outcome, _) => outcome,
    }
}

/// Explains which device or process has the UDP port, or why the device refuses an IPv6 address. Returns `None` for
/// other errors.
fn in_the_way(op: &Op, errno: i32, devices: &Devices) -> Option<String> {
    let vxlan = |name: LinkName| match devices.row(name)?.kind {
        LinkKind::Vxlan(vxlan) => Some(vxlan),
        LinkKind::Other(_) => None,
    };
    let (name, ours) = match (&op.object, errno) {
        (Object::Address(row), libc::EACCES | libc::EINVAL) if row.address.addr().is_ipv6() => {
            let link = row.link;
            return Some(format!(
                "; IPv6 is off on {link}, or its MTU is below 1280: check sysctl net.ipv6.conf.{link}.disable_ipv6 and \
                 ip link show {link}"
            ));
        }
        (Object::LinkUp(name), libc::EADDRINUSE) => (*name, vxlan(*name)?),
        (Object::Link(link), libc::EADDRINUSE | libc::EEXIST) => match &link.kind {
            LinkKind::Vxlan(vxlan) => (link.name, vxlan.clone()),
            LinkKind::Other(_) => return None,
        },
        _ => return None,
    };
    let port = ours.port;
    let others: Vec<String> =
        devices.with_port(port).filter(|other| *other != name).map(|other| other.to_string()).collect();
    // `EEXIST` concerns the VNI, too: a device that shares only the port may stay.
    let same_vni = |other: &&String| other.parse().ok().and_then(vxlan).is_some_and(|it| it.vni == ours.vni);
    let same: Vec<&String> = others.iter().filter(same_vni).collect();
    let blamed = if errno == libc::EEXIST && !same.is_empty() { same } else { others.iter().collect() };
    let Some(first) = blamed.first() else {
        return Some(format!(
            "; UDP port {port} is in use, but not by a device of this network namespace: a process has it (ss -uanp \
             'sport = {port}' names it), or a vxlan device in another network namespace. Stop or remove it, or choose \
             another Port in the network config"
        ));
    };
    let names = blamed.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    Some(format!(
        "; the vxlan device {names} has UDP port {port} already: remove it if nothing needs it (ip link del {first}), or \
         choose another Port or VNI in the network config"
    ))
}
