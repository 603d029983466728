//! Tests of random loss: how often it is taken for a fault, and how it is counted.

use std::time::Duration;

use plan::health::Probe;
use plan::{Path, PeerPath, TunnelKind};

use super::world::{Sim, World, came, peer};

const SECOND: Duration = Duration::from_secs(1);

/// Returns `count` peers of a kind; `loss` is the part of the probes without a reply.
fn lossy(peer: fn(u8) -> PeerPath, count: u8, loss: f64, seed: u64) -> World {
    let mut world = World::new((1..=count).map(|n| Sim::new(peer(n))).collect(), seed);
    // The loss of one direction.
    world.loss = 1.0 - (1.0 - loss).sqrt();
    world
}

/// If half of the large packets are lost at random, the direct path is kept and a fault is reported.
#[test]
fn large_packets_lost_at_random_are_reported_and_keep_the_direct_path() {
    let mut unlucky = 0;
    for seed in 1..=40_u64 {
        let mut world = World::new(vec![Sim::new(peer(1, Path::Tunnel(TunnelKind::Vxlan), true))], seed);
        world.run(SECOND * 20);
        world.sims[0].link = Box::new(move |probe, _, sent| {
            let mixed = (sent.as_millis() as u64 ^ seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let lost = matches!(probe, Probe::PathSized(_)) && mixed >> 63 == 1;
            (!lost).then(|| came(probe))
        });
        world.run(SECOND * 300);
        let said = world.sims[0].findings();
        let well = world.sims[0].switches <= 2 && world.finding(0).is_fault() && said.len() <= 12;
        unlucky += u8::from(!well);
        world.sims[0].link = Box::new(|probe, _, _| Some(came(probe)));
        world.run(SECOND * 45);
        assert_eq!(world.finding(0).name(), "healthy", "{seed}");
    }
    // Some seeds give longer runs of replies or of losses than most.
    assert!(unlucky <= 6, "{unlucky} of 40");
}

#[test]
fn the_reported_loss_matches_the_real_loss() {
    for (loss, seed) in [(0.05, 3), (0.10, 4), (0.20, 5)] {
        let mut world = lossy(|n| peer(n, Path::Direct, false), 40, loss, seed);
        let mut told = Vec::new();
        for _ in 0..5 {
            world.run(SECOND * 90);
            told.extend(world.sims.iter().map(|sim| f64::from(sim.judge.health().loss) / 1000.0));
        }
        let mean = told.iter().sum::<f64>() / told.len() as f64;
        assert!((mean / loss - 1.0).abs() < 0.12, "{mean} of {loss}");
    }
}

/// At 10 % loss a peer flaps less than once in five hours. At 15 % it is less than once in twenty minutes.
#[test]
fn random_loss_is_seldom_reported_as_flapping() {
    for (loss, minutes, most) in [(0.10, 100, 6), (0.15, 50, 45)] {
        let mut world = lossy(|n| peer(n, Path::Direct, false), 20, loss, 11);
        world.run(SECOND * 60 * minutes);
        let told = |sim: &Sim| sim.findings().iter().filter(|name| **name == "flapping").count();
        let all: usize = world.sims.iter().map(told).sum();
        assert!(all <= most, "{all} in {} hours at {loss}", 20 * minutes / 60);
    }
}
