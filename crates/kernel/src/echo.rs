//! Recognises notifications of FDB entries that we have just written. The kernel does not say who wrote an FDB entry,
//! so the monitor compares the content. Only new entries are recognised: a deleted one is always news.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use plan::state::FdbEntry;
use plan::{Object, Op, Verb};

use crate::devices::Devices;
use crate::fdb;
use crate::message::Part;
use crate::neigh;

/// Maximum number of ops in one batch whose notifications are recognised. A larger batch costs one extra reconcile
/// pass.
const MAX_EXPECTED: usize = 64;

/// FDB entries whose notification has not arrived yet, each with the index of its device.
#[derive(Clone, Default)]
pub(crate) struct Echoes(Arc<Mutex<Vec<(u32, FdbEntry)>>>);

impl Echoes {
    /// Expects the notifications of these ops, which are sent next.
    pub(crate) fn expect_notifications(&self, ops: &[Op], devices: &Devices) {
        let made = |op: &Op| match (&op.object, op.verb) {
            (_, Verb::Delete) => None,
            (Object::Fdb(row), _) => Some((devices.index(row.link)?, row.clone())),
            _ => None,
        };
        if ops.len() <= MAX_EXPECTED && ops.iter().any(|op| made(op).is_some()) {
            *self.lock() = ops.iter().filter_map(made).collect();
        }
    }

    /// Returns true if the message repeats an entry that we have just written. Each entry is recognised once.
    pub(crate) fn take(&self, part: Part<'_>) -> bool {
        if part.kind != libc::RTM_NEWNEIGH || part.body.u8(0) != fdb::AF_BRIDGE {
            return false;
        }
        let mut expected = self.lock();
        let is_same = |(index, row): &(u32, FdbEntry)| {
            *index == neigh::index(part) && fdb::decode(part, row.link).as_ref() == Some(row)
        };
        expected.iter().position(is_same).map(|at| expected.swap_remove(at)).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(u32, FdbEntry)>> {
        // A thread that panicked meanwhile left the list intact.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
