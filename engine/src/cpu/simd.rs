//! Owns the choice of instruction set, made once at run time, and the arithmetic the loops share. All of it uses fused
//! multiply-add in a fixed order, so the level changes the speed and never a result.

use std::sync::OnceLock;

/// The instruction-set levels there are kernels for, narrowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    Portable,
    Neon,
    Avx2,
    Avx512,
    /// With products of bfloat16 pairs.
    Avx512Bf16,
    /// With products of whole tiles of them.
    Amx,
}

/// Set by [`Isa::limit`].
static LIMIT: OnceLock<Isa> = OnceLock::new();
static DETECTED: OnceLock<Isa> = OnceLock::new();

impl Isa {
    /// The widest level of this machine, or less where [`Self::limit`] was called.
    pub fn detect() -> Self {
        *DETECTED.get_or_init(|| {
            let widest = Self::widest();
            match LIMIT.get() {
                Some(&limit) if limit < widest => limit,
                _ => widest,
            }
        })
    }

    /// Keeps this process to `self` and narrower levels; false if a level is already in use. For proofs that a machine
    /// with less computes the same.
    pub fn limit(self) -> bool {
        LIMIT.set(self).is_ok() && DETECTED.get().is_none()
    }

    #[cfg(target_arch = "x86_64")]
    fn widest() -> Self {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw");
        match (avx2, avx512) {
            (true, true) if is_x86_feature_detected!("avx512bf16") && amx_is_there() => Isa::Amx,
            (true, true) if is_x86_feature_detected!("avx512bf16") => Isa::Avx512Bf16,
            (true, true) => Isa::Avx512,
            (true, false) => Isa::Avx2,
            (false, _) => Isa::Portable,
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn widest() -> Self {
        Isa::Neon
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn widest() -> Self {
        Isa::Portable
    }

    /// The name a checkpoint records.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Amx => "amx",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Neon => "neon",
            Isa::Portable => "portable",
        }
    }
}

/// Whether the processor multiplies tiles of bfloat16, and the kernel gives this process their registers.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_is_there() -> bool {
    /// From Linux's `asm/prctl.h` and the numbers of `XCR0`.
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XTILEDATA: libc::c_long = 18;
    /// AMX-BF16 and AMX-TILE, of leaf 7's EDX.
    const FLAGS: u32 = 1 << 22 | 1 << 24;
    let flags = std::arch::x86_64::__cpuid_count(7, 0).edx;
    // SAFETY: the call changes nothing but what this process's threads may use from here on.
    flags & FLAGS == FLAGS
        && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) } == 0
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx_is_there() -> bool {
    false
}

/// Defines a function that is compiled for every level and runs the one of this machine. What it calls must be
/// `#[inline(always)]`, or it is compiled for the lowest level only. `[E]` after the name makes it generic over elements.
macro_rules! vectorized {
    ($(#[$attribute:meta])* $vis:vis fn $name:ident $([$($generic:ident),*])? ($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$attribute])*
        $vis fn $name $(<$($generic: $crate::cpu::element::Element),*>)? ($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn plain $(<$($generic: $crate::cpu::element::Element),*>)? ($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
            fn avx512 $(<$($generic: $crate::cpu::element::Element),*>)? ($($arg: $type),*) $(-> $result)? {
                plain $(::<$($generic),*>)? ($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2 $(<$($generic: $crate::cpu::element::Element),*>)? ($($arg: $type),*) $(-> $result)? {
                plain $(::<$($generic),*>)? ($($arg),*)
            }

            match $crate::cpu::simd::Isa::detect() {
                // SAFETY: the level was detected on this machine.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Isa::Avx512 | $crate::cpu::simd::Isa::Avx512Bf16 | $crate::cpu::simd::Isa::Amx => unsafe {
                    avx512 $(::<$($generic),*>)? ($($arg),*)
                },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Isa::Avx2 => unsafe { avx2 $(::<$($generic),*>)? ($($arg),*) },
                _ => plain $(::<$($generic),*>)? ($($arg),*),
            }
        }
    };
}
pub(crate) use vectorized;

/// Sums are kept in this many lanes on every machine, so that their order never depends on the vector width.
pub(crate) const LANES: usize = 16;

/// e^x within 2 ulp for x ≤ 88; 0 below −87.3 (where f32 turns subnormal).
/// Source: Cody & Waite range reduction, Taylor polynomial of degree 7 on ±ln2/2.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// 1.5 · 2^23: adding it rounds to an integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.0);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-0.693_145_75, clamped);
    let r = n.mul_add(-1.428_606_8e-6, r);
    let mut p = 1.0 / 5040.0;
    for c in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = r.mul_add(p, c);
    }
    let two_to_n = f32::from_bits(
        shifted
            .to_bits()
            .wrapping_sub(ROUND.to_bits())
            .wrapping_add(127)
            << 23,
    );
    if x < -87.3 { 0.0 } else { p * two_to_n }
}

/// tanh x within 2.4e-7, absolute.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// Numbers that are mapped before they are added up: a loop long enough that the compiler makes vectors of it.
const MAPPED: usize = 4 * LANES;

/// The sum of `f(a)`, in sixteen interleaved partial sums.
#[inline(always)]
pub(crate) fn sum<A: Copy>(a: &[A], f: impl Fn(A) -> f32) -> f32 {
    sum_of_two(a, a, |a, _| f(a))
}

/// The sum of `f(a, b)` over both, as [`sum`]. `b` is at least as long as `a`.
#[inline(always)]
pub(crate) fn sum_of_two<A: Copy, B: Copy>(a: &[A], b: &[B], f: impl Fn(A, B) -> f32) -> f32 {
    sum_of_three(a, b, a, |a, b, _| f(a, b))
}

/// The sum of `f(a, b, c)` over all three, as [`sum`].
#[inline(always)]
pub(crate) fn sum_of_three<A: Copy, B: Copy, C: Copy>(
    a: &[A],
    b: &[B],
    c: &[C],
    f: impl Fn(A, B, C) -> f32,
) -> f32 {
    let (b, c) = (&b[..a.len()], &c[..a.len()]);
    let mut lanes = [0.0f32; LANES];
    let mut mapped = [0.0f32; MAPPED];
    for ((a, b), c) in a.chunks(MAPPED).zip(b.chunks(MAPPED)).zip(c.chunks(MAPPED)) {
        let mapped = &mut mapped[..a.len()];
        for (((to, a), b), c) in mapped.iter_mut().zip(a).zip(b).zip(c) {
            *to = f(*a, *b, *c);
        }
        let (whole, rest) = mapped.as_chunks::<LANES>();
        for chunk in whole {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane += x;
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += x;
        }
    }
    fold(lanes, |a, b| a + b)
}

/// The largest of `values`; −∞ for none.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (most, &x) in lanes.iter_mut().zip(chunk) {
            *most = if x > *most { x } else { *most };
        }
    }
    for (most, &x) in lanes.iter_mut().zip(chunks.remainder()) {
        *most = if x > *most { x } else { *most };
    }
    fold(lanes, f32::max)
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let (ours, exact) = (exp(x), f64::from(x).exp());
            // 2.4e-7 = 2 ulp
            assert!(
                (f64::from(ours) - exact).abs() <= 2.4e-7 * exact,
                "exp({x}) = {ours}, not {exact}"
            );
        }
        assert_eq!(
            (exp(-1000.0), exp(f32::NEG_INFINITY), exp(0.0)),
            (0.0, 0.0, 1.0)
        );
    }

    #[test]
    fn tanh_is_within_its_bound_and_saturates() {
        for i in -20_000..20_000 {
            let x = i as f32 / 1000.0;
            let off = f64::from(tanh(x)) - f64::from(x).tanh();
            assert!(off.abs() <= 2.4e-7, "tanh({x}) is off by {off:e}");
        }
        assert_eq!((tanh(-1e9), tanh(1e9)), (-1.0, 1.0));
    }

    vectorized! {
        fn sum_of_exp(values: &[f32]) -> f32 {
            sum(values, exp)
        }
    }

    #[test]
    fn vectorized_loops_give_the_same_bits_as_plain_ones() {
        let values: Vec<f32> = (0..1003)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0)
            .collect();
        let plain = sum(&values, exp);
        assert_eq!(plain.to_bits(), sum_of_exp(&values).to_bits());
        assert_eq!(
            max(&values),
            values.iter().copied().fold(f32::NEG_INFINITY, f32::max)
        );
    }
}
