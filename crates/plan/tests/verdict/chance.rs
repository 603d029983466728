//! What is lost by chance: how often that is taken for a fault, and how it is counted.

use std::time::Duration;

use plan::{Path, PeerPath};

use super::world::{Sim, World, peer};

const SECOND: Duration = Duration::from_secs(1);

/// So many of a kind, of which that part of questions is without an answer.
fn lossy(peer: fn(u8) -> PeerPath, count: u8, loss: f64, seed: u64) -> World {
    let mut world = World::new((1..=count).map(|n| Sim::new(peer(n))).collect(), seed);
    // In each direction.
    world.loss = 1.0 - (1.0 - loss).sqrt();
    world
}

#[test]
fn as_many_are_counted_as_lost_as_are() {
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
