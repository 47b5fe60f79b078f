//! Single numbers, for every other machine.

type V = f32;
const LANES: usize = 1;
const HAS_DOT: bool = false;

fn dot(sum: V, _: V, _: V) -> V {
    sum
}

fn zero() -> V {
    0.0
}

unsafe fn load(from: *const f32) -> V {
    // SAFETY: promised by the caller.
    unsafe { *from }
}

unsafe fn store(to: *mut f32, x: V) {
    // SAFETY: promised by the caller.
    unsafe { *to = x }
}

unsafe fn store_rounded(to: *mut u16, x: V) {
    // SAFETY: promised by the caller.
    unsafe { *to = round(x) }
}

fn splat(word: u32) -> V {
    f32::from_bits(word)
}

unsafe fn load_bytes(from: *const u8) -> V {
    // SAFETY: promised by the caller.
    unsafe { f32::from(*from) }
}

unsafe fn load_nibbles(from: *const u8) -> (V, V) {
    // SAFETY: promised by the caller.
    let byte = unsafe { *from };
    (f32::from(byte & 15), f32::from(byte >> 4))
}

fn mul_add(a: V, b: V, c: V) -> V {
    a.mul_add(b, c)
}

fn add(a: V, b: V) -> V {
    a + b
}

fn low(words: V) -> V {
    f32::from_bits(super::low(words.to_bits()))
}

fn high(words: V) -> V {
    f32::from_bits(super::high(words.to_bits()))
}

kernels!([4 x 1] [2 x 1] [1 x 1]);
