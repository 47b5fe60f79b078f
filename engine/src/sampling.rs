//! Owns the choice of the next token from its logits; a pure function of logits, settings, seed and index.

use std::collections::HashMap;

use crate::cpu::simd::{exp, max, sum, vectorized};
use crate::generate::is_allowed;
use crate::rng::{Purpose, Stream};

/// How the next token is chosen, in OpenAI's terms.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Only so many of the likeliest tokens are drawn from.
    pub top_k: usize,
    /// Of those, only the likeliest that together have this share of their probability.
    pub top_p: f32,
    /// Of those, only tokens at least so likely, as a share of the likeliest.
    pub min_p: f32,
    /// Subtracted from a token's logit for each time it has been generated.
    pub frequency_penalty: f32,
    /// Subtracted once from the logit of every token that has been generated.
    pub presence_penalty: f32,
    /// Same seed, same prompt, same model: same tokens.
    pub seed: u64,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: usize::MAX,
            top_p: 1.0,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: 0,
            logit_bias: Vec::new(),
        }
    }
}

/// A draw from the softmax of the logits as they are: all that it needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Draw {
    /// Of the temperature; 0: the first of the likeliest.
    pub inverse_temperature: f32,
    /// Where in [0, 1) of the probabilities, laid end to end, the token lies.
    pub random: f64,
}

impl Sampling {
    /// The draw of the token after `index` others out of `vocab`; `None` where logits are changed or cut before.
    pub(crate) fn plain_draw(&self, vocab: usize, index: u64) -> Option<Draw> {
        let is_greedy = self.is_greedy();
        let changes = !self.logit_bias.is_empty()
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0;
        let cuts = self.top_k < vocab || self.top_p < 1.0 || self.min_p > 0.0;
        if changes || cuts && !is_greedy {
            return None;
        }
        Some(Draw {
            inverse_temperature: if is_greedy {
                0.0
            } else {
                self.temperature.recip()
            },
            random: self.random(index),
        })
    }

    /// Below what f32 can divide by, the likeliest is all that is left.
    fn is_greedy(&self) -> bool {
        !(self.temperature.recip().is_finite() && self.temperature > 0.0)
    }

    fn random(&self, index: u64) -> f64 {
        Stream::new(self.seed, Purpose::Sampling, 0).uniform_f64(index)
    }
}

/// A token that was chosen, or was known. Log probabilities are those of the model itself: before bias, penalties, temperature and top_p.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    pub token: u32,
    pub logprob: f32,
    /// The likeliest tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// Why no token was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nothing {
    /// The logits are no numbers.
    NotFinite,
    /// No token is allowed.
    Allowed,
}

/// Chooses from `logits`, which it changes. `generated` counts the tokens generated so far; `index` is their number. `allowed`
/// has a bit for each token, as [`Walk::allowed`](crate::generate::Walk::allowed) says.
pub(crate) fn choose(
    logits: &mut [f32],
    sampling: &Sampling,
    generated: &HashMap<u32, u32>,
    allowed: Option<&[u32]>,
    index: u64,
    n_top: usize,
) -> Result<Choice, Nothing> {
    let (lse, top) = normalized(logits, n_top)?;
    let changed: Vec<(usize, f32)> = adjustments(sampling, generated, logits.len());
    let raw: Vec<f32> = changed.iter().map(|&(token, _)| logits[token]).collect();
    for &(token, change) in &changed {
        logits[token] += change;
    }
    if let Some(allowed) = allowed {
        forbid_others(logits, allowed)?;
    }
    let token = match sampling.is_greedy() {
        true => likeliest(logits, 1)[0].0,
        false => draw(logits, sampling, index),
    };
    // A token may have been changed more than once: its first entry holds the model's own logit.
    let unchanged = changed
        .iter()
        .position(|&(i, _)| i == token as usize)
        .map(|i| raw[i]);
    let own = unchanged.unwrap_or(logits[token as usize]);
    Ok(Choice {
        token,
        logprob: own - lse,
        top,
    })
}

/// What the model says of `token`, which is known, out of `logits`.
pub(crate) fn score(logits: &[f32], token: u32, n_top: usize) -> Result<Choice, Nothing> {
    let (lse, top) = normalized(logits, n_top)?;
    Ok(Choice {
        token,
        logprob: logits[token as usize] - lse,
        top,
    })
}

/// log Σ e^logit, and the `n_top` likeliest tokens with their log p, best first. Errors: `NotFinite`.
fn normalized(logits: &[f32], n_top: usize) -> Result<(f32, Vec<(u32, f32)>), Nothing> {
    let lse = log_sum_exp(logits);
    if !lse.is_finite() {
        return Err(Nothing::NotFinite);
    }
    let top = likeliest(logits, n_top).into_iter();
    Ok((lse, top.map(|(token, x)| (token, x - lse)).collect()))
}

/// What is not allowed gets no probability at all. Errors: `Allowed` if nothing is left.
fn forbid_others(logits: &mut [f32], allowed: &[u32]) -> Result<(), Nothing> {
    let mut is_any = false;
    for (token, logit) in logits.iter_mut().enumerate() {
        if is_allowed(allowed, token) {
            is_any |= *logit > f32::NEG_INFINITY;
        } else {
            *logit = f32::NEG_INFINITY;
        }
    }
    if is_any {
        Ok(())
    } else {
        Err(Nothing::Allowed)
    }
}

fn adjustments(
    sampling: &Sampling,
    generated: &HashMap<u32, u32>,
    vocab: usize,
) -> Vec<(usize, f32)> {
    let mut changes: Vec<(usize, f32)> = sampling
        .logit_bias
        .iter()
        .map(|&(token, bias)| (token as usize, bias))
        .collect();
    if sampling.frequency_penalty != 0.0 || sampling.presence_penalty != 0.0 {
        changes.extend(generated.iter().map(|(&token, &count)| {
            (
                token as usize,
                -(count as f32 * sampling.frequency_penalty + sampling.presence_penalty),
            )
        }));
    }
    changes.retain(|&(token, _)| token < vocab);
    changes
}

/// The `n` largest, best first; of equals the lower id.
fn likeliest(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(n + 1);
    if n == 0 {
        return best;
    }
    let mut bar = f32::NEG_INFINITY;
    for (token, &x) in logits.iter().enumerate() {
        if x > bar || best.len() < n {
            let place = best.partition_point(|&(_, y)| y >= x);
            best.insert(place, (token as u32, x));
            best.truncate(n);
            if best.len() == n {
                bar = best[n - 1].1;
            }
        }
    }
    best
}

/// Draws from the softmax at the temperature, cut by top_k, then top_p, then min_p: the order of Hugging Face.
fn draw(logits: &[f32], sampling: &Sampling, index: u64) -> u32 {
    let mut weights = logits.to_vec();
    let total = weigh(&mut weights, 1.0 / sampling.temperature);
    let random = sampling.random(index);
    let top_p = sampling.top_p.max(0.0);
    let mut tokens = match sampling.top_k.max(1) {
        k if k < weights.len() => {
            let tokens = likeliest(&weights, k);
            let total = tokens.iter().map(|&(_, w)| w).sum();
            first_of(tokens, total, top_p)
        }
        _ if top_p < 1.0 => nucleus(&weights, total, top_p),
        _ => tokens_of(&weights, |w| w > 0.0),
    };
    // The likeliest weighs 1. What weighs nothing is not allowed.
    tokens.retain(|&(_, w)| w > 0.0 && w >= sampling.min_p.min(1.0));
    pick(&tokens, random)
}

/// Tokens whose weight is as `is_wanted` says, in the order of their ids.
fn tokens_of(weights: &[f32], is_wanted: impl Fn(f32) -> bool) -> Vec<(u32, f32)> {
    let tokens = weights.iter().enumerate().filter(|&(_, &w)| is_wanted(w));
    tokens.map(|(token, &w)| (token as u32, w)).collect()
}

vectorized! {
    /// log Σ e^logit.
    fn log_sum_exp(logits: &[f32]) -> f32 {
        let top = max(logits);
        top + sum(logits, |x| exp(x - top)).ln()
    }
}

vectorized! {
    /// Logits become weights, e^((logit − largest)·inverse); returns their sum.
    fn weigh(logits: &mut [f32], inverse: f32) -> f32 {
        let top = max(logits);
        for x in logits.iter_mut() {
            *x = exp((*x - top) * inverse);
        }
        sum(logits, |x| x)
    }
}

/// The likeliest tokens that together have `top_p` of `total`, one at least. Source: Holtzman et al. 2020 (arXiv:1904.09751).
fn nucleus(weights: &[f32], total: f32, top_p: f32) -> Vec<(u32, f32)> {
    // Tokens below this together weigh less than the 1 − top_p that is cut anyway: they need no sorting.
    let bar = (1.0 - top_p) * total / weights.len() as f32 * 0.999;
    let mut tokens = tokens_of(weights, |w| w >= bar);
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    first_of(tokens, total, top_p)
}

/// The first of `tokens`, best first, that together have `top_p` of `total`, one at least.
fn first_of(mut tokens: Vec<(u32, f32)>, total: f32, top_p: f32) -> Vec<(u32, f32)> {
    if top_p >= 1.0 {
        return tokens;
    }
    let goal = f64::from(top_p) * f64::from(total);
    let mut mass = 0.0;
    let n = tokens.iter().position(|&(_, w)| {
        mass += f64::from(w);
        mass >= goal
    });
    tokens.truncate(n.map_or(tokens.len(), |n| n + 1));
    tokens
}

/// The token at share `random`, in [0, 1), of the weights laid end to end.
fn pick(tokens: &[(u32, f32)], random: f64) -> u32 {
    let total: f64 = tokens.iter().map(|&(_, w)| f64::from(w)).sum();
    let mut left = random * total;
    for &(token, w) in tokens {
        left -= f64::from(w);
        if left < 0.0 {
            return token;
        }
    }
    tokens
        .last()
        .expect("a nucleus has a token — a bug in `nucleus`")
        .0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(logits: &[f32], sampling: &Sampling, generated: &[(u32, u32)], index: u64) -> Choice {
        choose(
            &mut logits.to_vec(),
            sampling,
            &generated.iter().copied().collect(),
            None,
            index,
            3,
        )
        .unwrap()
    }

    #[test]
    fn greedy_takes_the_largest_and_the_lower_id_of_equals() {
        let greedy = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        let got = choice(&[1.0, 3.0, 3.0, 2.0], &greedy, &[], 0);
        assert_eq!(got.token, 1);
        assert_eq!(got.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 3]);
        let total: f64 = [1.0f64, 3.0, 3.0, 2.0].iter().map(|x| x.exp()).sum();
        assert!((f64::from(got.logprob) - (3.0 - total.ln())).abs() < 1e-6);
    }

    #[test]
    fn bias_and_penalties_change_the_choice_and_not_the_logprob() {
        let plain = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        let logits = [1.0, 3.0, 2.5, 2.0];
        let own = |token: usize| choice(&logits, &plain, &[], 0).logprob - 3.0 + logits[token];
        let cases = [
            (
                Sampling {
                    logit_bias: vec![(3, 5.0)],
                    ..plain.clone()
                },
                vec![],
                3,
            ),
            (
                Sampling {
                    frequency_penalty: 0.3,
                    ..plain.clone()
                },
                vec![(1, 1)],
                1,
            ),
            (
                Sampling {
                    frequency_penalty: 0.3,
                    ..plain.clone()
                },
                vec![(1, 2)],
                2,
            ),
            (
                Sampling {
                    presence_penalty: 0.6,
                    ..plain.clone()
                },
                vec![(1, 9)],
                2,
            ),
            (
                Sampling {
                    presence_penalty: 2.0,
                    logit_bias: vec![(1, 1.9)],
                    ..plain.clone()
                },
                vec![(1, 1)],
                1,
            ),
        ];
        for (sampling, generated, token) in cases {
            let got = choice(&logits, &sampling, &generated, 0);
            assert_eq!(got.token, token, "{sampling:?}");
            assert!((got.logprob - own(token as usize)).abs() < 1e-6);
        }
    }

    #[test]
    fn draws_follow_the_softmax_at_the_temperature() {
        let sampling = Sampling {
            temperature: 0.5,
            seed: 9,
            ..Sampling::default()
        };
        let logits = [0.0, 0.5, 1.0];
        let weights = logits.map(|x: f32| f64::from(x * 2.0).exp());
        let n = 30_000;
        let mut counts = [0u32; 3];
        for i in 0..n {
            counts[choice(&logits, &sampling, &[], i).token as usize] += 1;
        }
        for (count, weight) in counts.iter().zip(weights) {
            let expected = weight / weights.iter().sum::<f64>();
            // Five standard deviations of a share over 30,000 draws are below 0.015.
            assert!(
                (f64::from(*count) / n as f64 - expected).abs() < 0.015,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn the_nucleus_is_the_smallest_set_that_reaches_top_p() {
        let weights = [0.05, 0.5, 0.15, 0.3];
        for (top_p, expected) in [
            (0.0, vec![1]),
            (0.5, vec![1]),
            (0.6, vec![1, 3]),
            (0.9, vec![1, 3, 2]),
        ] {
            let tokens: Vec<u32> = nucleus(&weights, 1.0, top_p).iter().map(|t| t.0).collect();
            assert_eq!(tokens, expected, "{top_p}");
        }
    }

    #[test]
    fn top_k_top_p_and_min_p_cut_one_after_the_other() {
        // Weights of 8, 4, 2 and 1 at temperature 1.
        let logits = [1.0f32, 8.0, 2.0, 4.0].map(f32::ln);
        let drawn = |sampling: Sampling| {
            let draw = |i| choice(&logits, &sampling, &[], i).token;
            let mut tokens: Vec<u32> = (0..300).map(draw).collect();
            tokens.sort_unstable();
            tokens.dedup();
            tokens
        };
        let all = Sampling::default();
        for (top_k, top_p, min_p, expected) in [
            (usize::MAX, 1.0, 0.0, vec![0, 1, 2, 3]),
            (2, 1.0, 0.0, vec![1, 3]),
            (0, 1.0, 0.0, vec![1]),
            (4, 1.0, 0.0, vec![0, 1, 2, 3]),
            (usize::MAX, 1.0, 0.25, vec![1, 2, 3]),
            (usize::MAX, 1.0, 1.0, vec![1]),
            // Of the two that are left the first has two thirds.
            (2, 0.66, 0.0, vec![1]),
            (2, 0.67, 0.0, vec![1, 3]),
            (3, 0.9, 0.5, vec![1, 3]),
        ] {
            let sampling = Sampling {
                top_k,
                top_p,
                min_p,
                ..all.clone()
            };
            assert_eq!(drawn(sampling), expected, "{top_k} {top_p} {min_p}");
        }
    }

    #[test]
    fn logits_that_are_no_numbers_are_refused() {
        let mut logits = [1.0, f32::NAN, 0.0];
        assert_eq!(
            choose(
                &mut logits,
                &Sampling::default(),
                &HashMap::new(),
                None,
                0,
                0
            ),
            Err(Nothing::NotFinite)
        );
    }

    #[test]
    fn a_temperature_near_nothing_takes_the_likeliest() {
        for temperature in [0.0, 1e-45, 1e-39, f32::MIN_POSITIVE, 1e-30] {
            let sampling = Sampling {
                temperature,
                ..Sampling::default()
            };
            let got = choice(&[-1e30, 1.0, 3.0, 2.9], &sampling, &[], 0);
            assert_eq!(got.token, 2, "{temperature}");
        }
    }

    #[test]
    fn what_is_not_allowed_is_never_drawn_and_changes_no_logprob() {
        let logits = [9.0f32, 1.0, 0.5, 8.0];
        let none = HashMap::new();
        let own = |token: u32| {
            choice(&logits, &Sampling::default(), &[], 0).top[0].1 - 9.0 + logits[token as usize]
        };
        for (temperature, top_k, top_p) in [
            (0.0, usize::MAX, 1.0),
            (1.0, usize::MAX, 1.0),
            (2.0, 3, 1.0),
            (1.0, usize::MAX, 0.9),
        ] {
            let sampling = Sampling {
                temperature,
                top_k,
                top_p,
                ..Sampling::default()
            };
            for index in 0..200 {
                let got = choose(
                    &mut logits.to_vec(),
                    &sampling,
                    &none,
                    Some(&[0b0110]),
                    index,
                    0,
                )
                .unwrap();
                assert!(
                    [1, 2].contains(&got.token),
                    "{sampling:?} drew {}",
                    got.token
                );
                assert!((got.logprob - own(got.token)).abs() < 1e-5);
            }
        }
        let nothing: [&[u32]; 3] = [&[], &[0], &[1 << 4]];
        for allowed in nothing {
            let got = choose(
                &mut logits.to_vec(),
                &Sampling::default(),
                &none,
                Some(allowed),
                0,
                0,
            );
            assert_eq!(got, Err(Nothing::Allowed));
        }
    }
}
