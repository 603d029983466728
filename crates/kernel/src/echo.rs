//! The FDB entries that we have just written: the kernel tells everybody of them and does not say who made them, so the
//! monitor knows its own echo by what it says. Only of entries that are made: one that goes is always news.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use plan::state::FdbEntry;
use plan::{Object, Op, Verb};

use crate::fdb;
use crate::link::Devices;
use crate::neigh;
use crate::wire::Part;

/// Of more than so many at once the echo is taken for news: one round among thousands of changes is none too many.
const MOST: usize = 64;

/// Those that are not heard yet, each with the index of its device.
#[derive(Clone, Default)]
pub(crate) struct Echoes(Arc<Mutex<Vec<(u32, FdbEntry)>>>);

impl Echoes {
    /// These ops are sent next.
    pub(crate) fn foresee(&self, ops: &[Op], devices: &Devices) {
        let made = |op: &Op| match (&op.object, op.verb) {
            (_, Verb::Delete) => None,
            (Object::Fdb(row), _) => Some((devices.index(row.link)?, row.clone())),
            _ => None,
        };
        if ops.len() <= MOST && ops.iter().any(|op| made(op).is_some()) {
            *self.lock() = ops.iter().filter_map(made).collect();
        }
    }

    /// Does it say what we have written, and nothing else? Each is known once.
    pub(crate) fn take(&self, part: Part<'_>) -> bool {
        if part.kind != libc::RTM_NEWNEIGH || part.body.u8(0) != fdb::AF_BRIDGE {
            return false;
        }
        let mut expected = self.lock();
        let told = |(index, row): &(u32, FdbEntry)| {
            *index == neigh::index(part) && fdb::decode(part, row.link).as_ref() == Some(row)
        };
        expected.iter().position(told).map(|at| expected.swap_remove(at)).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(u32, FdbEntry)>> {
        // Whoever panicked meanwhile left a whole list.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
