//! Tests of the lab itself, without twill: each promise on which a test of twill relies.
#![expect(clippy::expect_used, reason = "a helper of a test fails as the test does")]

mod enter;
mod etcd;
mod look;
mod measure;
mod pods;
mod testing;
mod topology;
mod traffic;
mod wire;
