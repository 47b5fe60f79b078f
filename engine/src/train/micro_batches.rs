//! Owns which examples share a pass: documents lie end to end without padding, each attends to itself alone.

use crate::batch::Example;
use crate::model::Batch;

/// Which examples of a step share a pass. It decides speed and memory, and the order of sums; never which examples are in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Packing {
    /// Each example has a pass of its own.
    None,
    /// In their order, a new pass where the next example does not fit.
    Greedy,
    /// Longest first, each into the fullest pass that still has room: best-fit decreasing.
    #[default]
    BinPack,
}

/// Rows whose activations exist at once on a CPU. Tokens.
pub(super) const MICRO_BATCH_TOKENS: usize = 1024;

/// The passes of a step, of up to `budget` tokens each or of one longer piece: of `n_together` examples, which share a pass. What stands
/// after the last label of an example is left out, as it can change no loss.
pub(super) fn micro_batches(
    examples: &[Example],
    n_together: usize,
    packing: Packing,
    budget: usize,
) -> Vec<Batch> {
    let length = |piece: &[Example]| piece.iter().map(Example::n_inputs).sum();
    let lengths: Vec<usize> = examples.chunks(n_together).map(length).collect();
    let examples_of = |i: usize| i * n_together..(i + 1) * n_together;
    plan(&lengths, packing, budget)
        .into_iter()
        .map(|pieces| lay_out(examples, pieces.into_iter().flat_map(examples_of).collect()))
        .collect()
}

/// For each pass, its pieces in rising order; those of length 0 are in none.
fn plan(lengths: &[usize], packing: Packing, budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).filter(|&i| lengths[i] > 0).collect();
    if packing == Packing::BinPack {
        order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    }
    let mut passes: Vec<(usize, Vec<usize>)> = Vec::new();
    for i in order {
        let fits = |(used, _): &&mut (usize, Vec<usize>)| used + lengths[i] <= budget;
        let pass = match packing {
            Packing::None => None,
            Packing::Greedy => passes.last_mut().filter(fits),
            Packing::BinPack => passes.iter_mut().filter(fits).max_by_key(|(used, _)| *used),
        };
        match pass {
            Some((used, members)) => {
                *used += lengths[i];
                members.push(i);
            }
            None => passes.push((lengths[i], vec![i])),
        }
    }
    let mut members: Vec<Vec<usize>> = passes.into_iter().map(|(_, members)| members).collect();
    members
        .iter_mut()
        .for_each(|members| members.sort_unstable());
    members
}

fn lay_out(examples: &[Example], members: Vec<usize>) -> Batch {
    let mut batch = Batch::default();
    for example in members.iter().map(|&i| &examples[i]) {
        let (n, first) = (example.n_inputs(), batch.tokens.len());
        batch.tokens.extend(&example.tokens[..n]);
        batch.documents.push(first..first + n);
        batch.lengths.push(example.tokens.len());
        for i in (1..=n).filter(|&i| example.mask[i]) {
            batch.label_rows.push(first + i - 1);
            batch.labels.push(example.tokens[i]);
        }
    }
    Batch { members, ..batch }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(len: usize, labels: &[usize]) -> Example {
        Example {
            tokens: (0..len as u32).collect(),
            mask: (0..len).map(|i| labels.contains(&i)).collect(),
        }
    }

    #[test]
    fn passes_restart_documents_and_drop_what_follows_the_last_label() {
        let examples = [
            example(600, &[599]),
            example(5, &[0]),
            example(400, &[2, 300]),
            example(800, &[500]),
        ];
        let batches = micro_batches(&examples, 1, Packing::Greedy, 1024);
        assert_eq!(batches.len(), 2);
        assert_eq!(batches[0].documents, [0..599, 599..899]);
        assert_eq!(batches[0].lengths, [600, 400]);
        assert_eq!(batches[0].label_rows, [598, 600, 898]);
        assert_eq!(batches[0].labels, [599, 2, 300]);
        assert_eq!(
            (batches[1].documents[0].clone(), batches[1].labels.clone()),
            (0..500, vec![500])
        );
        assert_eq!(micro_batches(&examples, 1, Packing::None, 1024).len(), 3);
    }

    #[test]
    fn what_belongs_together_shares_a_pass() {
        let lengths = [300, 400, 500, 10, 200, 100, 700, 600];
        let examples = lengths.map(|n| example(n, &[n - 1]));
        for packing in [Packing::None, Packing::Greedy, Packing::BinPack] {
            let passes = micro_batches(&examples, 2, packing, 1024);
            let mut members: Vec<usize> = passes.iter().flat_map(|p| p.members.clone()).collect();
            for pass in &passes {
                let pairs = pass.members.chunks(2);
                assert!(
                    pairs
                        .map(|pair| pair[1] - pair[0])
                        .eq(vec![1; pass.members.len() / 2])
                );
                assert!(pass.members.iter().step_by(2).all(|i| i % 2 == 0));
            }
            members.sort_unstable();
            assert_eq!(members, (0..8).collect::<Vec<_>>());
        }
    }

    #[test]
    fn bins_are_filled_to_95_percent_where_lengths_are_mixed() {
        // Lengths as in instruction data: many short, few long.
        let lengths: Vec<usize> = (0..400)
            .map(|i| 16 + (i * 7919 % 613) * (i % 7 + 1) / 5)
            .collect();
        for (packing, least) in [(Packing::BinPack, 0.95), (Packing::Greedy, 0.5)] {
            let passes = plan(&lengths, packing, 1024);
            let mut members: Vec<usize> = passes.iter().flatten().copied().collect();
            members.sort_unstable();
            assert_eq!(
                members,
                (0..400).collect::<Vec<_>>(),
                "every example is in one pass"
            );
            assert!(
                passes
                    .iter()
                    .all(|pass| pass.iter().map(|&i| lengths[i]).sum::<usize>() <= 1024)
            );
            let fill = lengths.iter().sum::<usize>() as f64 / (1024 * passes.len()) as f64;
            assert!(fill >= least, "{packing:?} fills {fill}");
        }
    }
}
