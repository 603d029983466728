//! Carries out ops in their order, many per send, and reports the outcome of each. An op that fails never stops the
//! others.

use std::slice;

use plan::{Object, Op};

use crate::devices::{self, Devices};
use crate::error::{Cause, Error};
use crate::firewall;
use crate::handle::Kernel;
use crate::kind::{self, Outcome, Prepared};

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
                None => devices::read(&mut self.netlink),
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
        let (mut requests, mut results) = (Vec::with_capacity(ops.len()), Vec::with_capacity(ops.len()));
        for op in ops {
            let prepared = kind::writable(&op.object).map(|row| row.prepare(op.verb, devices));
            results.push(match prepared {
                Some(Ok(Prepared::Send(request))) => {
                    requests.push(request);
                    None
                }
                Some(Ok(Prepared::Alone(change))) => Some(change(&mut self.netlink)),
                Some(Err(link)) => Some(Err(Cause::NoDevice(link))),
                None => Some(self.firewall.apply(slice::from_ref(op))),
            });
        }
        self.echoes.expect_notifications(ops, devices);
        let mut answers = self.netlink.batch(requests).into_iter();
        let mut outcome = |(op, result): (&Op, Option<_>)| match result.or_else(|| answers.next()) {
            Some(Err(cause)) => self.outcome_of(op, cause, devices),
            _ => Outcome::Done,
        };
        ops.iter().zip(results).map(&mut outcome).collect()
    }

    /// Turns the cause of an error into an outcome. An error is no failure if it means that there was nothing to do.
    fn outcome_of(&mut self, op: &Op, cause: Cause, devices: &Devices) -> Outcome {
        if op.verb.deletes() && is_gone(&cause) {
            return Outcome::Gone;
        }
        let Some(row) = kind::writable(&op.object) else { return failed(op, cause) };
        row.refused(op.verb, cause, &mut self.netlink, devices).unwrap_or_else(|cause| {
            let advice = cause.errno().and_then(|errno| row.advice(op.verb, errno, devices));
            let error = Error::new(op.to_string(), cause);
            Outcome::Failed(match advice {
                Some(advice) => Error { advice: advice.into(), ..error },
                None => error,
            })
        })
    }
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
    kind::writable(&op.object).is_some_and(|row| row.stands_alone(op.verb))
}

/// Returns true if the error means that the object to delete, or its device, does not exist.
fn is_gone(cause: &Cause) -> bool {
    match cause {
        Cause::NoDevice(_) => true,
        Cause::Refused { errno, .. } => {
            [libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL].contains(errno)
        }
        _ => false,
    }
}

fn failed(op: &Op, cause: Cause) -> Outcome {
    Outcome::Failed(Error::new(op.to_string(), cause))
}
