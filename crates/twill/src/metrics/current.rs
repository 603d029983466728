//! Gauges whose labels come and go. A scrape may come at any time, so a gauge that stays is never missing, not even for a
//! moment.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

/// Family of gauges, some of which come and go.
pub(super) struct Current<L> {
    family: Family<L, Gauge>,
    shown: Mutex<HashSet<L>>,
}

impl<L: Clone + Eq + Hash> Default for Current<L> {
    fn default() -> Self {
        Self { family: Family::default(), shown: Mutex::default() }
    }
}

impl<L: Clone + Eq + Hash> Current<L> {
    /// Returns the family to register.
    pub(super) fn family(&self) -> Family<L, Gauge> {
        self.family.clone()
    }

    /// Sets these gauges and removes all others.
    pub(super) fn set(&self, values: HashMap<L, i64>) {
        for (labels, value) in &values {
            self.family.get_or_create(labels).set(*value);
        }
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in shown.iter().filter(|labels| !values.contains_key(labels)) {
            self.family.remove(gone);
        }
        *shown = values.into_keys().collect();
    }

    /// Sets each gauge to the number of times that its labels occur.
    pub(super) fn count(&self, all: impl IntoIterator<Item = L>) {
        let mut counts = HashMap::new();
        for labels in all {
            *counts.entry(labels).or_default() += 1;
        }
        self.set(counts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    #[test]
    fn a_lasting_gauge_is_set_in_place_and_an_old_one_removed() {
        let (current, mut registry) = (Current::default(), Registry::default());
        registry.register("notes", "Notes", current.family());
        let by = |reason| vec![("reason", reason)];
        current.count([by("full"), by("late"), by("late")]);
        let late = current.family.get_or_create(&by("late")).clone();
        current.count([by("late"), by("new")]);
        assert_eq!(late.get(), 1, "it is the same gauge still, not another of that name");
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let mut lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        lines.sort_unstable();
        assert_eq!(lines, [r#"notes{reason="late"} 1"#, r#"notes{reason="new"} 1"#]);
    }
}
