//! Vectors of 128 bits, on 64-bit ARM.

use std::arch::aarch64::*;

type V = float32x4_t;
const LANES: usize = 4;
const HAS_DOT: bool = false;

#[inline]
fn dot(sum: V, _: V, _: V) -> V {
    sum
}

#[inline]
fn zero() -> V {
    splat(0)
}

#[inline]
unsafe fn load(from: *const f32) -> V {
    // SAFETY: promised by the caller.
    unsafe { vld1q_f32(from) }
}

#[inline]
unsafe fn store(to: *mut f32, x: V) {
    // SAFETY: promised by the caller.
    unsafe { vst1q_f32(to, x) }
}

#[inline]
unsafe fn store_rounded(to: *mut u16, x: V) {
    let mut lanes = [0.0f32; LANES];
    // SAFETY: promised by the caller.
    unsafe {
        store(lanes.as_mut_ptr(), x);
        for (j, x) in lanes.into_iter().enumerate() {
            *to.add(j) = round(x);
        }
    }
}

#[inline]
fn splat(word: u32) -> V {
    // SAFETY: every aarch64 processor that Rust knows has these instructions.
    unsafe { vdupq_n_f32(f32::from_bits(word)) }
}

/// Four bytes, widened.
#[inline]
unsafe fn load_four(from: *const u8) -> uint32x4_t {
    // SAFETY: promised by the caller; the instructions as above.
    unsafe {
        let bytes = vreinterpret_u8_u32(vdup_n_u32(from.cast::<u32>().read_unaligned()));
        vmovl_u16(vget_low_u16(vmovl_u8(bytes)))
    }
}

#[inline]
unsafe fn load_bytes(from: *const u8) -> V {
    // SAFETY: as above.
    unsafe { vcvtq_f32_u32(load_four(from)) }
}

#[inline]
unsafe fn load_nibbles(from: *const u8) -> (V, V) {
    // SAFETY: as above.
    unsafe {
        let bytes = load_four(from);
        let (low, high) = (vandq_u32(bytes, vdupq_n_u32(15)), vshrq_n_u32::<4>(bytes));
        (vcvtq_f32_u32(low), vcvtq_f32_u32(high))
    }
}

#[inline]
fn mul_add(a: V, b: V, c: V) -> V {
    // SAFETY: as above.
    unsafe { vfmaq_f32(c, a, b) }
}

#[inline]
fn add(a: V, b: V) -> V {
    // SAFETY: as above.
    unsafe { vaddq_f32(a, b) }
}

#[inline]
fn low(words: V) -> V {
    // SAFETY: as above.
    unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(words))) }
}

#[inline]
fn high(words: V) -> V {
    // SAFETY: as above.
    unsafe {
        vreinterpretq_f32_u32(vandq_u32(
            vreinterpretq_u32_f32(words),
            vdupq_n_u32(0xffff_0000),
        ))
    }
}

kernels!([4 x 1] [2 x 1] [1 x 1]);
