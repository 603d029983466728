//! Whole behaviour: real daemons on a real kernel in namespaces of their own, looked at from outside. One binary; the
//! modules carry the names that the same things have in the other layers.

mod vxlan;
