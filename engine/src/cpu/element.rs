//! Owns the number formats of activations: f32, and bfloat16 whose products are summed in f32.

use half::bf16;

use crate::cpu::simd::Isa;

/// The number format that activations are kept and multiplied in; sums are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    #[default]
    Fp32,
    /// bfloat16: eight bits of precision, the range of f32.
    Bf16,
}

impl Precision {
    /// What to generate in from weights in bf16: bf16 itself where this processor multiplies it.
    pub fn of_bf16_weights() -> Self {
        match Isa::detect() {
            Isa::Avx512Bf16 | Isa::Amx => Precision::Bf16,
            Isa::Portable | Isa::Neon | Isa::Avx2 | Isa::Avx512 => Precision::Fp32,
        }
    }

    /// The name a checkpoint records.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Bf16 => "bf16",
        }
    }
}

/// A number that activations are made of.
pub(crate) trait Element:
    bytemuck::Pod + Default + PartialEq + std::fmt::Debug + Send + Sync
{
    const PRECISION: Precision;
    /// Numbers in one 32-bit word of a matrix operand.
    const PER_WORD: usize;

    /// Rounded to the nearest, ties to even.
    fn from_f32(x: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
    /// As [`Self::from_f32`].
    fn to_bf16(self) -> bf16;
    /// Any format → this one.
    fn from_element<S: Element>(x: S) -> Self;
    /// One word of a matrix operand: the second number stands only where a word holds two.
    fn word(first: Self, second: Self) -> u32;
}

impl Element for f32 {
    const PRECISION: Precision = Precision::Fp32;
    const PER_WORD: usize = 1;

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn to_bf16(self) -> bf16 {
        bf16::from_bits(round(self))
    }

    #[inline(always)]
    fn from_element<S: Element>(x: S) -> Self {
        x.to_f32()
    }

    #[inline(always)]
    fn word(first: Self, _: Self) -> u32 {
        first.to_bits()
    }
}

impl Element for bf16 {
    const PRECISION: Precision = Precision::Bf16;
    const PER_WORD: usize = 2;

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        bf16::from_bits(round(x))
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn to_bf16(self) -> bf16 {
        self
    }

    #[inline(always)]
    fn from_element<S: Element>(x: S) -> Self {
        x.to_bf16()
    }

    #[inline(always)]
    fn word(first: Self, second: Self) -> u32 {
        u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16
    }
}

/// The upper half of an f32, rounded to the nearest, ties to even; a NaN stays one. Unlike `half`'s own conversion it has no
/// branch and no run-time detection, so loops over it become vector code that gives the same bits everywhere.
#[inline(always)]
pub(crate) fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
    (if is_nan { bits >> 16 | 0x40 } else { nearest }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_half_for_every_kind_of_number() {
        let mut bits = 0u32;
        for _ in 0..200_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = f32::from_bits(bits);
            let (ours, theirs) = (bf16::from_f32(x), <bf16 as Element>::from_f32(x));
            assert!(ours == theirs || (x.is_nan() && theirs.is_nan()), "{x:e}");
        }
        for x in [
            0.0,
            -0.0,
            f32::INFINITY,
            f32::MAX,
            f32::MIN_POSITIVE,
            1.0 + 1.0 / 256.0,
        ] {
            assert_eq!(bf16::from_f32(x), <bf16 as Element>::from_f32(x));
        }
        assert!(<bf16 as Element>::from_f32(f32::from_bits(0x7fff_ffff)).is_nan());
    }
}
