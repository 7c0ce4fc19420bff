//! Which queue should be served by another worker.
//!
//! What a queue costs is counted in frames and bytes. A queue moves when that takes at least an eighth off the busier of
//! two workers, and when the look before had found the same two to be uneven: a burst of traffic moves nothing, and what
//! was moved does not come back.

use std::collections::HashMap;

use crate::bridge::PortTable;
use crate::port_id::PortId;

/// What a frame costs besides its bytes, in bytes.
const FRAME_COST: u64 = 2048;
/// Below this, the work of a worker between two looks is not worth evening out: some ten thousand frames.
const FLOOR: u64 = 10_000 * FRAME_COST;
/// The part of its load that the busier worker must lose.
const GAIN: u64 = 8;

/// A queue, the worker that serves it, and what it cost since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Load {
    port: PortId,
    pair: usize,
    worker: usize,
    cost: u64,
}

/// A queue to be moved, and where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) port: PortId,
    pub(super) pair: usize,
    from: usize,
    pub(super) to: usize,
}

/// What is remembered from look to look.
#[derive(Debug, Default)]
pub(super) struct Balancer {
    /// What each queue had cost in all.
    before: HashMap<(PortId, usize), u64>,
    /// The two workers that were uneven, the busier first.
    uneven: Option<(usize, usize)>,
    /// Whether there was more to do since the last look than hardly anything.
    pub(super) busy: bool,
}

impl Balancer {
    /// Looks at all queues; returns the one to be moved now.
    pub(super) fn look(&mut self, ports: &PortTable, workers: usize) -> Option<Step> {
        let mut loads = Vec::new();
        let mut now = HashMap::with_capacity(self.before.len());
        for port in ports.iter().filter(|port| !port.is_tap()) {
            for (pair, queues) in port.pairs().iter().enumerate() {
                let counters = queues.ingress.counters();
                let total = counters.frames.get().wrapping_mul(FRAME_COST) + counters.bytes.get();
                let before = self.before.get(&(port.id(), pair)).copied();
                now.insert((port.id(), pair), total);
                loads.push(Load {
                    port: port.id(),
                    pair,
                    worker: queues.ingress.worker(),
                    cost: total.saturating_sub(before.unwrap_or(total)),
                });
            }
        }
        self.before = now;
        self.busy = loads.iter().map(|load| load.cost).sum::<u64>() >= FLOOR;
        let step = choose(&loads, workers);
        let uneven = step.map(|step| (step.from, step.to));
        if uneven.is_some() && self.uneven == uneven {
            self.uneven = None;
            return step;
        }
        self.uneven = uneven;
        None
    }
}

/// The move that evens out the busiest and the idlest worker best.
fn choose(loads: &[Load], workers: usize) -> Option<Step> {
    let mut sums = vec![0_u64; workers];
    for load in loads {
        *sums.get_mut(load.worker)? += load.cost;
    }
    let (from, &most) = sums.iter().enumerate().max_by_key(|&(_, sum)| sum)?;
    let (to, &least) = sums.iter().enumerate().min_by_key(|&(_, sum)| sum)?;
    if most < FLOOR {
        return None;
    }
    let busier_after = |load: &Load| (most - load.cost).max(least + load.cost);
    let best = loads
        .iter()
        .filter(|load| load.worker == from && load.cost > 0)
        .min_by_key(|load| busier_after(load))?;
    (busier_after(best) <= most - most / GAIN).then_some(Step {
        port: best.port,
        pair: best.pair,
        from,
        to,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(costs: &[(usize, u64)]) -> Vec<Load> {
        let queue = |(index, &(worker, cost)): (usize, &(usize, u64))| Load {
            port: PortId::from_index(index).unwrap(),
            pair: 0,
            worker,
            cost: cost * FLOOR,
        };
        costs.iter().enumerate().map(queue).collect()
    }

    fn chosen(costs: &[(usize, u64)], workers: usize) -> Option<(usize, usize)> {
        choose(&loads(costs), workers).map(|step| (step.port.index(), step.to))
    }

    #[test]
    fn the_queue_that_evens_out_best_moves_to_the_idlest_worker() {
        assert_eq!(chosen(&[(0, 10), (0, 30), (0, 20), (1, 8)], 3), Some((1, 2)));
        assert_eq!(chosen(&[(0, 10), (0, 50), (1, 40)], 2), Some((0, 1)));
    }

    #[test]
    fn nothing_moves_without_gain() {
        assert_eq!(
            chosen(&[(0, 90), (1, 0)], 2),
            None,
            "one queue only moves the load"
        );
        assert_eq!(chosen(&[(0, 20), (0, 20), (1, 38)], 2), None, "even enough");
        assert_eq!(chosen(&[], 4), None);
        let mut quiet = loads(&[(0, 1), (0, 1), (1, 0)]);
        for load in &mut quiet {
            load.cost = load.cost * 2 / 5;
        }
        assert_eq!(choose(&quiet, 2), None, "hardly any traffic");
    }

    #[test]
    fn what_moved_stays() {
        let mut queues = loads(&[(0, 33), (0, 11), (0, 7), (0, 29), (0, 2), (0, 17)]);
        let mut moves = 0;
        while let Some(step) = choose(&queues, 3) {
            queues[step.port.index()].worker = step.to;
            moves += 1;
            assert!(moves <= 6, "queues go back and forth");
        }
        assert!((2..=6).contains(&moves));
    }
}
