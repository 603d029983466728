//! Sorted list of rows, the form of every part of a [`State`](crate::state::State): small in memory, walked once.
//!
//! Several rows may have one key, because the kernel allows that (`ip route append`).

use std::cmp::Ordering;
use std::hash::Hash;

use serde::{Deserialize, Serialize};

/// Object of the kernel.
pub trait Row: Clone + Ord {
    /// Key that identifies an object among all objects of its kind, whatever its other attributes.
    type Key<'a>: Ord + Hash
    where
        Self: 'a;

    /// Returns the row's key: the only place that says which rows name the same object.
    fn key(&self) -> Self::Key<'_>;

    /// Compares the keys of two rows; equal when both name the same object.
    fn cmp_key(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// Rows in ascending order of their keys; rows of one key are in the order of all their fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<T>")]
pub struct Table<T: Row>(Vec<T>);

impl<T: Row> Default for Table<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Row> From<Vec<T>> for Table<T> {
    fn from(mut rows: Vec<T>) -> Self {
        rows.sort_unstable_by(|a, b| a.cmp_key(b).then_with(|| a.cmp(b)));
        Self(rows)
    }
}

impl<T: Row> FromIterator<T> for Table<T> {
    fn from_iter<I: IntoIterator<Item = T>>(rows: I) -> Self {
        rows.into_iter().collect::<Vec<_>>().into()
    }
}

impl<T: Row> std::ops::Deref for Table<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<'a, T: Row> IntoIterator for &'a Table<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<T: Row> Table<T> {
    /// Returns true if the table has no rows.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Walks the union of both tables' keys in order, once. Each item holds the rows of `self` and of `other` under one
    /// key.
    pub fn union<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (&'a [T], &'a [T])> {
        let (mut left, mut right) = (&self.0[..], &other.0[..]);
        std::iter::from_fn(move || {
            let first = match (left.first(), right.first()) {
                (None, None) => return None,
                (Some(a), None) => a,
                (None, Some(b)) => b,
                (Some(a), Some(b)) if a.cmp_key(b).is_le() => a,
                (Some(_), Some(b)) => b,
            };
            Some((take_key(&mut left, first), take_key(&mut right, first)))
        })
    }
}

fn take_key<'a, T: Row>(rows: &mut &'a [T], first: &T) -> &'a [T] {
    let count = rows.iter().take_while(|row| row.cmp_key(first).is_eq()).count();
    let (head, tail) = rows.split_at(count);
    *rows = tail;
    head
}
