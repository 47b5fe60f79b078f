//! Owns what a training keeps between forward and backward, and where: in the GPU's memory, in the host's, or nowhere, computed again. It knows no sizes.

use crate::model::MemoryLevel;

/// Where the streams into the blocks wait for the backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    OnGpu,
    /// In host memory: they leave and come back while the GPU computes.
    OnHost,
}

/// How a training uses a GPU's memory. Every plan gives the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    pub level: MemoryLevel,
    /// Layers, the last ones, that keep gate and up where the level is `DropGateUp`.
    pub n_gate_up: usize,
    pub streams: Streams,
}

impl From<MemoryLevel> for MemoryPlan {
    fn from(level: MemoryLevel) -> Self {
        Self {
            level,
            n_gate_up: 0,
            streams: Streams::OnGpu,
        }
    }
}

impl MemoryPlan {
    /// Whether a layer keeps gate and up.
    pub(super) fn gate_up(&self, layer: usize, n_layers: usize) -> bool {
        match self.level {
            MemoryLevel::KeepAll => true,
            MemoryLevel::DropGateUp => layer + self.n_gate_up >= n_layers,
            MemoryLevel::LayerInputs => false,
        }
    }

    /// The plans of a level, or of any, from the fastest to the leanest. To compute gate and up again in a few layers costs a few hundredths of a step on
    /// any machine; in all of them a fifth, where streams on the host cost nothing on a fast bus. So streams leave before more layers are dropped; where the
    /// host has no room for them, the other plans are left.
    pub(super) fn all(asked: Option<MemoryLevel>, n_layers: usize) -> impl Iterator<Item = Self> {
        let plan = |level, n_gate_up, streams| Self {
            level,
            n_gate_up,
            streams,
        };
        let drop = move |kept, streams| plan(MemoryLevel::DropGateUp, kept, streams);
        let few = n_layers / 8;
        let on_gpu = (n_layers - few..n_layers).rev();
        let on_gpu = on_gpu.map(move |kept| drop(kept, Streams::OnGpu));
        let on_host = (0..n_layers).rev();
        let on_host = on_host.map(move |kept| drop(kept, Streams::OnHost));
        [plan(MemoryLevel::KeepAll, 0, Streams::OnGpu)]
            .into_iter()
            .chain(on_gpu)
            .chain([plan(MemoryLevel::KeepAll, 0, Streams::OnHost)])
            .chain(on_host)
            .chain([
                drop(0, Streams::OnGpu),
                plan(MemoryLevel::LayerInputs, 0, Streams::OnGpu),
                plan(MemoryLevel::LayerInputs, 0, Streams::OnHost),
            ])
            .filter(move |plan| asked.is_none_or(|level| plan.level == level))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_go_from_the_fastest_to_the_leanest() {
        let told = |asked| {
            let plans = MemoryPlan::all(asked, 16);
            let told = plans.map(|plan| (plan.level, plan.n_gate_up, plan.streams));
            told.collect::<Vec<_>>()
        };
        let dropped = |kept, streams| (MemoryLevel::DropGateUp, kept, streams);
        let mut expected = vec![
            (MemoryLevel::KeepAll, 0, Streams::OnGpu),
            dropped(15, Streams::OnGpu),
            dropped(14, Streams::OnGpu),
            (MemoryLevel::KeepAll, 0, Streams::OnHost),
        ];
        expected.extend((0..16).rev().map(|kept| dropped(kept, Streams::OnHost)));
        expected.push(dropped(0, Streams::OnGpu));
        expected.push((MemoryLevel::LayerInputs, 0, Streams::OnGpu));
        expected.push((MemoryLevel::LayerInputs, 0, Streams::OnHost));
        assert_eq!(told(None), expected);
        expected.retain(|plan| plan.0 == MemoryLevel::LayerInputs);
        assert_eq!(told(Some(MemoryLevel::LayerInputs)), expected);
    }

    #[test]
    fn the_last_layers_keep_gate_and_up() {
        let keeps = |level, n_gate_up| {
            let plan = MemoryPlan {
                n_gate_up,
                ..MemoryPlan::from(level)
            };
            (0..4)
                .map(|layer| plan.gate_up(layer, 4))
                .collect::<Vec<_>>()
        };
        assert_eq!(keeps(MemoryLevel::KeepAll, 0), [true; 4]);
        assert_eq!(keeps(MemoryLevel::LayerInputs, 0), [false; 4]);
        assert_eq!(keeps(MemoryLevel::DropGateUp, 0), [false; 4]);
        let last = [false, false, false, true];
        assert_eq!(keeps(MemoryLevel::DropGateUp, 1), last);
    }
}
