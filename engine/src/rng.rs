//! Owns randomness: every number is a pure function of (seed, purpose, index), so nothing has to be saved to resume.

/// What a number is drawn for; two purposes never share a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// The first value of an adapter's A matrices.
    AdapterInit = 1,
    /// The order of the examples in an epoch.
    EpochOrder = 2,
    /// The choice of the next token.
    Sampling = 3,
    /// Which inputs of a low-rank change are dropped.
    Dropout = 4,
}

/// A stream of numbers addressed by index.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    key: u64,
}

impl Stream {
    /// The stream for `purpose`, subdivided by `lane` (an epoch, a tensor, a sequence).
    pub fn new(seed: u64, purpose: Purpose, lane: u64) -> Self {
        Self {
            key: mix(mix(mix(seed) ^ purpose as u64).wrapping_add(lane)),
        }
    }

    /// 64 random bits at `index`.
    #[inline(always)]
    pub fn bits(&self, index: u64) -> u64 {
        mix(self.key ^ mix(index.wrapping_mul(GOLDEN)))
    }

    /// A number in [0, 1) with 24 random bits, at `index`.
    pub fn uniform(&self, index: u64) -> f32 {
        (self.bits(index) >> 40) as f32 / (1u64 << 24) as f32
    }

    /// A number in [0, 1) with 53 random bits, at `index`.
    pub fn uniform_f64(&self, index: u64) -> f64 {
        (self.bits(index) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number from the normal distribution of mean 0 and variance 1, at `index`. Source: Box & Muller 1958.
    pub fn normal(&self, index: u64) -> f32 {
        let (u, v) = (self.uniform_f64(2 * index), self.uniform_f64(2 * index + 1));
        ((-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }

    /// A number in 0..`bound`, at `index`; the bias is below `bound` / 2^64. `bound` must not be 0.
    pub fn below(&self, index: u64, bound: u64) -> u64 {
        ((u128::from(self.bits(index)) * u128::from(bound)) >> 64) as u64
    }
}

/// 2^64 divided by the golden ratio: consecutive multiples are spread evenly.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64: a bijection whose every output bit depends on every input bit.
/// Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".
#[inline(always)]
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_numbers_fill_the_interval_evenly() {
        let stream = Stream::new(7, Purpose::Sampling, 0);
        let mut counts = [0u32; 10];
        for i in 0..100_000 {
            let x = stream.uniform(i);
            assert!((0.0..1.0).contains(&x));
            counts[(x * 10.0) as usize] += 1;
        }
        // Six standard deviations of a binomial with p = 0.1 over 100,000 draws are 570.
        assert!(
            counts.iter().all(|&c| c.abs_diff(10_000) < 570),
            "{counts:?}"
        );
    }

    #[test]
    fn normal_numbers_have_the_moments_of_the_normal_distribution() {
        let stream = Stream::new(7, Purpose::AdapterInit, 0);
        let n = 100_000;
        let moment = |power| {
            (0..n)
                .map(|i| f64::from(stream.normal(i)).powi(power))
                .sum::<f64>()
                / n as f64
        };
        // Six standard deviations of each mean: of x 0.019, of x² 0.027, of x⁴ (variance 96) 0.19.
        assert!(moment(1).abs() < 0.019);
        assert!((moment(2) - 1.0).abs() < 0.027);
        assert!((moment(4) - 3.0).abs() < 0.19);
    }

    #[test]
    fn seed_purpose_lane_and_index_all_matter() {
        let base = Stream::new(1, Purpose::Sampling, 0).bits(0);
        assert_ne!(base, Stream::new(2, Purpose::Sampling, 0).bits(0));
        assert_ne!(base, Stream::new(1, Purpose::EpochOrder, 0).bits(0));
        assert_ne!(base, Stream::new(1, Purpose::Sampling, 1).bits(0));
        assert_ne!(base, Stream::new(1, Purpose::Sampling, 0).bits(1));
    }

    #[test]
    fn the_streams_never_change_between_versions() {
        assert_eq!(Stream::new(0, Purpose::AdapterInit, 0).bits(0), FIRST_BITS);
    }

    /// A stored run can only be continued while this holds.
    const FIRST_BITS: u64 = 5_899_266_603_031_722_904;
}
