//! A feed-forward of experts: rows are gathered by expert, so that each expert is two products over its rows, and what they
//! give goes back to the rows by the router's weights. Source: Shazeer et al. 2017 (arXiv:1701.06538) and Mixtral
//! (arXiv:2401.04088). Nothing here is trained; gradients only pass through.

use crate::config::{self, Activation, ModelConfig};
use crate::cpu::buffer::{Buffer, OutOfMemory};
use crate::cpu::element::Element;
use crate::cpu::gemm::{Left, Out, Side, linear};
use crate::cpu::pool::Pool;
use crate::cpu::simd::{exp, max, sum, sum_of_two, vectorized};
use crate::nn::glu;
use crate::weights::{Dense, Experts, Layer, Linear, Mlp};

/// What the router decided. A place is a (row, expert) pair; places of one expert lie together, in the order of rows.
#[derive(Default)]
pub(crate) struct Routing {
    /// softmax of the router's logits, (T, E).
    probabilities: Buffer,
    /// The experts of each row, likeliest first, (T, k).
    chosen: Vec<usize>,
    /// Where each choice has its place, (T, k).
    places: Vec<usize>,
    /// The row of each place, (T·k).
    rows: Vec<usize>,
    /// The factor of what the expert gives, by place, (T·k).
    weights: Vec<f32>,
    /// The first place of each expert, and the end, (E + 1).
    starts: Vec<usize>,
}

/// Memory that every block uses in turn.
#[derive(Default)]
pub(crate) struct Scratch<E> {
    /// What the experts read, or give, or its gradient, by place, (T·k, D).
    gathered: Buffer<E>,
    /// Gradient of what down reads, (T·k, F).
    d_inner: Buffer<E>,
    /// Gradients of the weights, (T·k).
    d_weights: Buffer,
    /// Gradients of the router's logits, (T, E) and a zero where E is odd.
    d_logits: Buffer<E>,
    /// (T, D)
    sums: Buffer,
}

/// The experts of one block.
#[derive(Clone, Copy)]
pub(crate) struct Mixture<'a> {
    pool: &'a Pool,
    config: &'a config::Experts,
    act: Activation,
    weights: &'a Experts,
}

impl<'a> Mixture<'a> {
    /// `None` where the layer's feed-forward is dense.
    pub fn of(pool: &'a Pool, config: &'a ModelConfig, layer: &'a Layer) -> Option<Self> {
        match (&config.experts, &layer.mlp) {
            (Some(experts), Mlp::Experts(weights)) => Some(Self {
                pool,
                config: experts,
                act: config.hidden_act,
                weights,
            }),
            _ => None,
        }
    }

    /// Routes the rows of `x` (T, D) and gives gate and up of each place, (T·k, 2F).
    /// Errors: `OutOfMemory`.
    pub fn gate_up<E: Element>(
        self,
        x: &[E],
        routing: &mut Routing,
        scratch: &mut Scratch<E>,
        gate_up: &mut Buffer<E>,
    ) -> Result<(), OutOfMemory> {
        let router = &self.weights.router;
        let (n_experts, width) = (router.n_out(), router.n_in());
        let rows = x.len() / width;
        routing.probabilities.ensure(rows * n_experts)?;
        let (x_rows, logits) = (
            Left::rows(x, width),
            Out::SetSums(&mut routing.probabilities),
        );
        linear(
            self.pool,
            rows,
            x_rows,
            (router, Side::Forward),
            None,
            &[],
            logits,
        );
        routing.choose::<E>(self.pool, self.config);
        scratch.gathered.ensure(routing.rows.len() * width)?;
        gather(self.pool, width, x, &routing.rows, &mut scratch.gathered);
        gate_up.ensure(routing.rows.len() * 2 * self.config.intermediate_size)?;
        self.each(
            routing,
            Side::Forward,
            |e| &e.gate_up,
            &scratch.gathered,
            gate_up,
        );
        Ok(())
    }

    /// What down reads of each place, (T·k, F).
    /// Errors: `OutOfMemory`.
    pub fn inner<E: Element>(
        self,
        gate_up: &[E],
        inner: &mut Buffer<E>,
    ) -> Result<(), OutOfMemory> {
        inner.ensure(gate_up.len() / 2)?;
        glu::forward(
            self.pool,
            self.act,
            gate_up,
            inner,
            self.config.intermediate_size,
        );
        Ok(())
    }

    /// Adds what the experts give to `out`, (T, D).
    /// Errors: `OutOfMemory`.
    pub fn down<E: Element>(
        self,
        inner: &[E],
        routing: &Routing,
        scratch: &mut Scratch<E>,
        out: &mut [f32],
    ) -> Result<(), OutOfMemory> {
        let (width, k) = (self.weights.router.n_in(), self.config.num_experts_per_tok);
        let gathered = &mut scratch.gathered;
        gathered.ensure(routing.rows.len() * width)?;
        self.each(routing, Side::Forward, |e| &e.down, inner, gathered);
        self.pool
            .for_rows(out.len() / width, (out, width), |rows, out| {
                for (row, out) in rows.zip(out.chunks_exact_mut(width)) {
                    for &place in &routing.places[row * k..(row + 1) * k] {
                        let from = &gathered[place * width..(place + 1) * width];
                        add_scaled(from, routing.weights[place], out);
                    }
                }
            });
        Ok(())
    }

    /// `dx` (T, D) becomes the gradient of what the experts read; `d_out` (T, D) is that of what they give. Uses up
    /// `gate_up`; `inner` is what down read.
    /// Errors: `OutOfMemory`.
    pub fn backward<E: Element>(
        self,
        d_out: &[E],
        routing: &Routing,
        gate_up: &mut [E],
        inner: &[E],
        scratch: &mut Scratch<E>,
        dx: &mut [E],
    ) -> Result<(), OutOfMemory> {
        let (router, pool, k) = (
            &self.weights.router,
            self.pool,
            self.config.num_experts_per_tok,
        );
        let (n_experts, width) = (router.n_out(), router.n_in());
        let (n_places, n_inner) = (routing.rows.len(), self.config.intermediate_size);
        let rows = n_places / k;
        let Scratch {
            gathered,
            d_inner,
            d_weights,
            d_logits,
            sums,
        } = scratch;
        gathered.ensure(n_places * width)?;
        gather(pool, width, d_out, &routing.rows, gathered);
        d_inner.ensure(n_places * n_inner)?;
        self.each(routing, Side::Turned, |e| &e.down, gathered, d_inner);
        d_weights.ensure(n_places)?;
        let (by_place, d_weight) = ((&mut **d_inner, n_inner), (&mut **d_weights, 1));
        pool.for_rows_of_two(
            n_places,
            by_place,
            d_weight,
            |places, d_inner, d_weights| {
                let of_place = d_inner.chunks_exact_mut(n_inner).zip(d_weights);
                for (place, (d_inner, d_weight)) in places.zip(of_place) {
                    // down is linear: what the weight multiplies is inner·Wᵀ, so its gradient is (d_out·W)·inner.
                    *d_weight = dot(d_inner, &inner[place * n_inner..(place + 1) * n_inner]);
                    scale(routing.weights[place], d_inner);
                }
            },
        );
        glu::backward(pool, self.act, d_inner, gate_up, n_inner);
        self.each(routing, Side::Turned, |e| &e.gate_up, gate_up, gathered);
        let stride = n_experts.next_multiple_of(E::PER_WORD);
        d_logits.ensure(rows * stride)?;
        pool.for_rows(rows, (&mut **d_logits, stride), |rows, d_logits| {
            for (row, d_logits) in rows.zip(d_logits.chunks_exact_mut(stride)) {
                routing.logit_gradients(self.config, row, d_weights, d_logits);
            }
        });
        sums.ensure(rows * width)?;
        let (d_rows, to) = (Left::rows(d_logits, stride), Out::SetSums(sums));
        linear(pool, rows, d_rows, (router, Side::Turned), None, &[], to);
        pool.for_rows_of_two(rows, (dx, width), (sums, width), |rows, dx, sums| {
            let of_row = dx.chunks_exact_mut(width).zip(sums.chunks_exact_mut(width));
            for (row, (dx, sums)) in rows.zip(of_row) {
                for &place in &routing.places[row * k..(row + 1) * k] {
                    add_scaled(&gathered[place * width..(place + 1) * width], 1.0, sums);
                }
                dx.iter_mut()
                    .zip(sums)
                    .for_each(|(dx, sum)| *dx = E::from_f32(*sum));
            }
        });
        Ok(())
    }

    /// One linear of every expert over the places of each.
    fn each<E: Element>(
        self,
        routing: &Routing,
        side: Side,
        of: impl Fn(&Dense) -> &Linear,
        x: &[E],
        y: &mut [E],
    ) {
        for (places, expert) in routing.starts.windows(2).zip(&self.weights.experts) {
            let (first, end) = (places[0], places[1]);
            if first == end {
                continue;
            }
            let Linear { weight, bias } = of(expert);
            let (n_in, n_out, bias) = match side {
                Side::Forward => (weight.n_in(), weight.n_out(), bias.as_deref()),
                Side::Turned => (weight.n_out(), weight.n_in(), None),
            };
            let x = Left::rows(&x[first * n_in..end * n_in], n_in);
            let y = Out::Set(&mut y[first * n_out..end * n_out]);
            linear(self.pool, end - first, x, (weight, side), bias, &[], y);
        }
    }
}

impl Routing {
    /// From logits in `probabilities` to everything else.
    fn choose<E: Element>(&mut self, pool: &Pool, config: &config::Experts) {
        let (n_experts, k) = (config.num_experts, config.num_experts_per_tok);
        let n_rows = self.probabilities.len() / n_experts;
        self.chosen.resize(n_rows * k, 0);
        let probabilities = (&mut *self.probabilities, n_experts);
        pool.for_rows_of_two(
            n_rows,
            probabilities,
            (&mut self.chosen, k),
            |_, p, chosen| {
                for (p, chosen) in p
                    .chunks_exact_mut(n_experts)
                    .zip(chosen.chunks_exact_mut(k))
                {
                    softmax(p);
                    largest(p, chosen);
                }
            },
        );
        self.sort(n_experts, k);
        self.weights.resize(n_rows * k, 0.0);
        for row in 0..n_rows {
            let total = self.chosen_total(config, row);
            for i in row * k..(row + 1) * k {
                let p = self.probabilities[row * n_experts + self.chosen[i]];
                self.weights[self.places[i]] = E::from_f32(p / total).to_f32();
            }
        }
    }

    /// Gives every choice its place.
    fn sort(&mut self, n_experts: usize, k: usize) {
        self.starts.clear();
        self.starts.resize(n_experts + 1, 0);
        for &expert in &self.chosen {
            self.starts[expert + 1] += 1;
        }
        for expert in 0..n_experts {
            self.starts[expert + 1] += self.starts[expert];
        }
        let mut next = self.starts.clone();
        self.places.clear();
        self.rows.resize(self.chosen.len(), 0);
        for (i, &expert) in self.chosen.iter().enumerate() {
            self.places.push(next[expert]);
            self.rows[next[expert]] = i / k;
            next[expert] += 1;
        }
    }

    /// What the probabilities of a row's experts are divided by.
    fn chosen_total(&self, config: &config::Experts, row: usize) -> f32 {
        if !config.norm_topk_prob {
            return 1.0;
        }
        let (p, k) = (self.row(config, row), config.num_experts_per_tok);
        self.chosen[row * k..(row + 1) * k]
            .iter()
            .map(|&e| p[e])
            .sum()
    }

    fn row(&self, config: &config::Experts, row: usize) -> &[f32] {
        &self.probabilities[row * config.num_experts..(row + 1) * config.num_experts]
    }

    /// The gradient of a row's logits z: with w = p/Σp over the chosen, dp = (dw − Σ dw·w)/Σp; without the division
    /// dp = dw; dz = p·(dp − Σ p·dp), where what was not chosen has dp = 0.
    fn logit_gradients<E: Element>(
        &self,
        config: &config::Experts,
        row: usize,
        d_weights: &[f32],
        d_logits: &mut [E],
    ) {
        let (p, k) = (self.row(config, row), config.num_experts_per_tok);
        let total = self.chosen_total(config, row);
        let chosen = || {
            let range = row * k..(row + 1) * k;
            let experts = self.chosen[range.clone()].iter();
            experts
                .zip(&self.places[range])
                .map(|(&e, &place)| (e, d_weights[place]))
        };
        let mean: f32 = match config.norm_topk_prob {
            true => chosen().map(|(e, dw)| dw * p[e] / total).sum(),
            false => 0.0,
        };
        let all: f32 = chosen().map(|(e, dw)| p[e] * (dw - mean) / total).sum();
        d_logits.fill(E::default());
        for (dz, p) in d_logits.iter_mut().zip(p) {
            *dz = E::from_f32(-p * all);
        }
        for (e, dw) in chosen() {
            d_logits[e] = E::from_f32(p[e] * ((dw - mean) / total - all));
        }
    }
}

/// The row of `x` (T, `width`) at each place.
fn gather<E: Element>(pool: &Pool, width: usize, x: &[E], rows: &[usize], to: &mut [E]) {
    pool.for_rows(rows.len(), (to, width), |places, to| {
        for (place, to) in places.zip(to.chunks_exact_mut(width)) {
            to.copy_from_slice(&x[rows[place] * width..][..width]);
        }
    });
}

/// The numbers of the largest of `p`, largest first; of equal ones the first.
fn largest(p: &[f32], chosen: &mut [usize]) {
    for i in 0..chosen.len() {
        let (before, rest) = chosen.split_at_mut(i);
        let others = (0..p.len()).filter(|e| !before.contains(e));
        rest[0] = others
            .reduce(|best, e| if p[e] > p[best] { e } else { best })
            .expect("experts are at least as many as are chosen — `check_sizes` saw to it");
    }
}

vectorized! {
    fn softmax(x: &mut [f32]) {
        let top = max(x);
        for x in x.iter_mut() {
            *x = exp(*x - top);
        }
        let total = sum(x, |x| x);
        for x in x.iter_mut() {
            *x /= total;
        }
    }
}

vectorized! {
    fn dot[E](a: &[E], b: &[E]) -> f32 {
        sum_of_two(a, b, |a, b| a.to_f32() * b.to_f32())
    }
}

vectorized! {
    fn scale[E](factor: f32, x: &mut [E]) {
        for x in x.iter_mut() {
            *x = E::from_f32(x.to_f32() * factor);
        }
    }
}

vectorized! {
    fn add_scaled[E](x: &[E], factor: f32, to: &mut [f32]) {
        for (to, x) in to.iter_mut().zip(x) {
            *to += x.to_f32() * factor;
        }
    }
}
