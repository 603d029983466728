//! Faults around the daemon are reported once, where people look: what, where, why and what to do. The running network does not
//! suffer, and no restart is needed once the fault is corrected.

mod clock;
mod config;
mod device;
mod leases;
mod rights;
mod subnet_file;
mod uplink;
