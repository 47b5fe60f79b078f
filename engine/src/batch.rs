//! Owns what a training step reads: token ids with a label mask, and the order of an epoch. Knows no text.

use crate::rng::{Purpose, Stream};

/// One document with its labels.
/// Invariant (checked by the trainer): `tokens` and `mask` have the same length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// `mask[i]`: token i is a label, predicted from the tokens before it. `mask[0]` is ignored: nothing stands before it.
    pub mask: Vec<bool>,
}

impl Example {
    /// The number of tokens that are labels.
    pub fn n_labels(&self) -> usize {
        self.mask
            .iter()
            .skip(1)
            .filter(|&&is_label| is_label)
            .count()
    }

    /// The number of leading tokens that can influence a loss: everything before the last label.
    pub fn n_inputs(&self) -> usize {
        self.mask
            .iter()
            .skip(1)
            .rposition(|&is_label| is_label)
            .map_or(0, |last| last + 1)
    }
}

/// The order of an epoch's `n` examples: a permutation of 0..n that depends on (seed, epoch) alone.
/// Source: Fisher–Yates with one counter-based draw for each position.
pub fn epoch_order(seed: u64, epoch: u32, n: usize) -> Vec<u32> {
    let stream = Stream::new(seed, Purpose::EpochOrder, u64::from(epoch));
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        order.swap(i, stream.below(i as u64, i as u64 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_a_permutation_that_differs_by_epoch_and_seed() {
        let order = epoch_order(1, 0, 1000);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        assert_ne!(order, sorted);
        assert_ne!(order, epoch_order(1, 1, 1000));
        assert_ne!(order, epoch_order(2, 0, 1000));
        assert_eq!(order, epoch_order(1, 0, 1000));
    }

    #[test]
    fn inputs_end_before_the_last_label() {
        let example = |mask: &[bool]| Example {
            tokens: vec![0; mask.len()],
            mask: mask.to_vec(),
        };
        let cases = [
            (&[true][..], 0, 0),
            (&[true, false, false], 0, 0),
            (&[false, true, false], 1, 1),
            (&[true, true, false, true], 2, 3),
        ];
        for (mask, n_labels, n_inputs) in cases {
            assert_eq!(
                (example(mask).n_labels(), example(mask).n_inputs()),
                (n_labels, n_inputs),
                "{mask:?}"
            );
        }
    }
}
