//! Owns what an adapter makes of a base's tensors, a row at a time: W + s·B·A, with DoRA at its magnitude's length, and what
//! is trained whole in the base's place. Source: as `lora` and `dora`.

use std::collections::HashMap;
use std::ops::Range;

use crate::lora::layout::Layout;
use crate::lora::targets::path;
use crate::lora::{Adapter, Saved};

/// Values summed at once, in registers.
const LANES: usize = 32;

/// What an adapter does to one tensor of the base.
pub(crate) struct Change {
    /// The shape that the tensor must have.
    pub shape: Vec<usize>,
    kind: Kind,
}

enum Kind {
    /// The sum of these slots' changes.
    Linear(Range<usize>),
    /// The tensor is these values.
    Whole(Range<usize>),
}

impl Adapter {
    /// Every change, by Hugging Face's name of the tensor.
    pub(crate) fn changes(&self) -> HashMap<String, Change> {
        let mut changes: HashMap<String, Change> = HashMap::new();
        let layout = self.layout();
        for (i, slot) in layout.slots().iter().enumerate() {
            // The slots of a linear lie beside each other.
            let change = changes.entry(format!("{}.weight", slot.path()));
            let change = change.or_insert_with(|| Change {
                shape: vec![slot.n_out, slot.n_in],
                kind: Kind::Linear(i..i),
            });
            if let Kind::Linear(slots) = &mut change.kind {
                slots.end = i + 1;
            }
        }
        let biases = layout.biases().iter().map(|bias| {
            let name = format!("{}.bias", path(bias.layer, bias.module));
            (name, vec![bias.columns.len()], bias.place.clone())
        });
        for (name, shape, place) in biases.chain(saved(layout)) {
            let kind = Kind::Whole(place);
            changes.insert(name, Change { shape, kind });
        }
        changes
    }

    /// Whether embedding and head are no longer one, though they are in the base.
    pub(crate) fn unties(&self) -> bool {
        saved(self.layout()).next().is_some()
    }

    /// Makes row `i` of the base's tensor the adapter's, in f32: the sum over the rank first, then its scale, as PEFT merges.
    pub(crate) fn change_row(&self, change: &Change, i: usize, row: &mut [f32]) {
        let slots = match &change.kind {
            Kind::Linear(slots) => &self.layout().slots()[slots.clone()],
            Kind::Whole(place) => {
                row.copy_from_slice(&self.values()[place.clone()][i * row.len()..][..row.len()]);
                return;
            }
        };
        for slot in slots {
            let a = &self.values()[slot.a.clone()];
            let b = &self.values()[slot.b.clone()][i * slot.r..][..slot.r];
            add_product(slot.scale, a, b, row);
        }
        let magnitude = slots.iter().find_map(|slot| slot.magnitude.clone());
        if let Some(place) = magnitude {
            let norm = row
                .iter()
                .map(|&w| f64::from(w) * f64::from(w))
                .sum::<f64>();
            let gain = self.values()[place][i] / norm.sqrt() as f32;
            row.iter_mut().for_each(|w| *w *= gain);
        }
    }
}

/// Name, shape and place of what is trained whole.
fn saved(layout: &Layout) -> impl Iterator<Item = (String, Vec<usize>, Range<usize>)> {
    let both = [Saved::EmbedTokens, Saved::LmHead];
    let present = both.map(|saved| layout.saved(saved).map(|place| (saved, place)));
    present.into_iter().flatten().map(|(saved, place)| {
        let name = format!("{}.weight", saved.path());
        (name, layout.saved_shape().to_vec(), place)
    })
}

/// row += scale · b·A, A (r, in).
fn add_product(scale: f32, a: &[f32], b: &[f32], row: &mut [f32]) {
    let n_in = row.len();
    for (chunk, row) in row.chunks_mut(LANES).enumerate() {
        let mut sum = [0.0; LANES];
        for (k, b) in b.iter().enumerate() {
            let a = &a[k * n_in + chunk * LANES..][..row.len()];
            for (sum, a) in sum.iter_mut().zip(a) {
                *sum += b * a;
            }
        }
        for (w, sum) in row.iter_mut().zip(sum) {
            *w += scale * sum;
        }
    }
}
