//! Whatever is wrong around the daemon is said once, where people look: what, where, why and what to do. The network that
//! runs does not suffer from it, and nothing has to be restarted once it is put right.

mod clock;
mod config;
mod device;
mod leases;
mod rights;
mod subnet_file;
mod uplink;
