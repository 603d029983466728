//! Walk over the kinds of rows, for code that is the same for each kind.

use crate::for_each_kind;
use crate::op::Object;
use crate::state::{Kind, State};
use crate::table::Table;

/// Visitor of the kinds of rows.
pub(crate) trait EachKind {
    /// Handles one kind; both functions find its table in a state.
    fn kind<K: Kind + Into<Object>>(
        &mut self,
        table: fn(&State) -> &Table<K>,
        table_mut: fn(&mut State) -> &mut Table<K>,
    );
}

macro_rules! each_kind {
    ($($table:ident: $variant:ident($payload:ty) of $row:ty,)*) => {
        impl State {
            /// Calls `visitor` once for each kind, with the functions that find that kind's table in any state.
            pub(crate) fn each_kind(visitor: &mut impl EachKind) {
                $(visitor.kind(|state: &Self| &state.$table, |state: &mut Self| &mut state.$table);)*
            }
        }
    };
}
for_each_kind!(each_kind);
