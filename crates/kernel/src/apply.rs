//! Does what it is told, in the order in which it is told, many ops to a send, and says of each how it went. One that
//! fails never stops its neighbours.

use plan::state::Link;
use plan::{LinkName, Object, Op, Verb};

use crate::error::{Cause, Error};
use crate::link::Devices;
use crate::wire::Message;
use crate::{Kernel, addr, fdb, link, neigh, nexthop, route, rule, sysctl};

/// How an op went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// Nothing was to be done: what was to be created is there, and equal.
    Already,
    /// Nothing was to be done: what was to be deleted is not there.
    Gone,
    /// Not done, as far as the kernel told.
    Failed(Error),
}

impl Kernel {
    /// One outcome per op, in the same order.
    pub fn apply(&mut self, ops: &[Op]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(ops.len());
        let mut known = None;
        for run in ops.chunk_by(|a, b| !stands_alone(a) && !stands_alone(b)) {
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

    fn run(&mut self, ops: &[Op], devices: &Devices) -> Vec<Outcome> {
        let (mut requests, mut settled) = (Vec::with_capacity(ops.len()), Vec::with_capacity(ops.len()));
        for op in ops {
            settled.push(match prepare(op, devices) {
                Step::Send(request) => {
                    requests.push(request);
                    None
                }
                Step::Settled(result) => Some(result),
            });
        }
        let mut answers = self.netlink.batch(requests).into_iter();
        let mut outcome = |(op, settled): (&Op, Option<_>)| match settled.or_else(|| answers.next()) {
            Some(Err(cause)) => self.judge(op, cause),
            _ => Outcome::Done,
        };
        ops.iter().zip(settled).map(&mut outcome).collect()
    }

    /// Errors that say that there was nothing to do are none.
    fn judge(&mut self, op: &Op, cause: Cause) -> Outcome {
        let gone = |errno| [libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL].contains(&errno);
        match (&op.object, &cause) {
            (_, Cause::NoDevice(_)) if deletes(op) => Outcome::Gone,
            (_, Cause::Refused { errno, .. }) if deletes(op) && gone(*errno) => Outcome::Gone,
            (Object::Rule(_), Cause::Refused { errno: libc::EEXIST, .. }) => Outcome::Already,
            (Object::Link(link), Cause::Refused { errno: libc::EEXIST, .. }) => self.compare(op, link, cause),
            _ => failed(op, cause),
        }
    }

    /// A device that was to be created exists: is it the one?
    fn compare(&mut self, op: &Op, link: &Link, cause: Cause) -> Outcome {
        match self.devices().map(|devices| devices.row(link.name)) {
            Err(error) => failed(op, error.cause),
            // Another name has that VNI and port: the kernel's words say so.
            Ok(None) => failed(op, cause),
            Ok(Some(there)) if there == (Link { up: there.up, ..link.clone() }) => Outcome::Already,
            Ok(Some(there)) => failed(op, Cause::Differs(there.to_string().into())),
        }
    }
}

/// An op as far as it goes without the kernel's answer.
enum Step {
    Send(Message),
    Settled(Result<(), Cause>),
}

/// What follows a change of a device may depend on its being there; a sysctl is no message.
fn stands_alone(op: &Op) -> bool {
    matches!(op.object, Object::Link(_) | Object::LinkUp(_) | Object::Sysctl(_))
}

fn deletes(op: &Op) -> bool {
    matches!(op.verb, Verb::Delete | Verb::Recreate)
}

fn prepare(op: &Op, devices: &Devices) -> Step {
    let index = |link: LinkName| devices.index(link).ok_or(link);
    let request = match (&op.object, deletes(op)) {
        // A sysctl has no absence.
        (Object::Sysctl(_), true) => return Step::Settled(Ok(())),
        (Object::Sysctl(row), false) => return Step::Settled(sysctl::write(row)),
        (Object::Link(link), true) => Ok(link::delete(link.name)),
        (Object::Link(link), false) if op.verb == Verb::Replace => Ok(link::replace(link)),
        (Object::Link(link), false) => link::add(link, devices),
        (Object::LinkUp(name), delete) => Ok(link::set_up(*name, !delete)),
        (Object::Address(row), true) => index(row.link).map(|index| addr::delete(row, index)),
        (Object::Address(row), false) => index(row.link).map(|index| addr::add(row, index)),
        (Object::Fdb(row), true) => index(row.link).map(|index| fdb::delete(row, index)),
        (Object::Fdb(row), false) => index(row.link).map(|index| fdb::add(row, index)),
        (Object::Neighbour(row), true) => index(row.link).map(|index| neigh::delete(row, index)),
        (Object::Neighbour(row), false) => index(row.link).map(|index| neigh::add(row, index)),
        (Object::Nexthop(row), true) => Ok(nexthop::delete(row.id)),
        (Object::Nexthop(row), false) => index(row.link).map(|index| nexthop::add(row, index)),
        (Object::Route(row), true) => route::delete(row, devices),
        (Object::Route(row), false) => route::add(row, devices),
        (Object::Rule(row), true) => Ok(rule::delete(row)),
        (Object::Rule(row), false) => Ok(rule::add(row)),
    };
    match request {
        Ok(request) => Step::Send(request),
        Err(link) => Step::Settled(Err(Cause::NoDevice(link))),
    }
}

fn failed(op: &Op, cause: Cause) -> Outcome {
    let unsupported = cause.errno() == Some(libc::EOPNOTSUPP);
    let mut error = Error::new(op.to_string(), cause);
    if unsupported && op.verb == Verb::Add && matches!(op.object, Object::Link(_)) {
        error.advice = "; the kernel module is missing: modprobe vxlan";
    }
    Outcome::Failed(error)
}
