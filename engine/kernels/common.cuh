// What every kernel file shares. No header of CUDA is needed.
#pragma once

typedef unsigned short bf16;  // its bits
typedef unsigned int u32;
typedef unsigned long long u64;

#define WARP 32
#define ALL_LANES 0xffffffffu

// Where a product goes: bf16 or f32 that is written, or f32 that is added to.
#define TO_BF16 0
#define TO_F32 1
#define ADD_TO_F32 2

__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(u32(x) << 16); }

// Rounds to nearest, ties to even.
__device__ __forceinline__ bf16 to_bf16(float x) {
    bf16 out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out) : "f"(x));
    return out;
}

// `low` in the low half.
__device__ __forceinline__ u32 to_bf16x2(float low, float high) {
    u32 out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

__device__ __forceinline__ float low_float(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_float(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// A kernel that was launched to begin before those before it have ended reads and writes nothing of theirs until here; the next one
// may begin in the same way. Without that launch it does nothing.
__device__ __forceinline__ void wait_for_kernels_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may begin.
__device__ __forceinline__ void let_the_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Whoever lets the next begin waits before it ends, at least in one of its blocks: so a kernel that has ended stands for all before it.

// As `wait_for_kernels_before`, but the next kernel begins when those before this one have ended, and may read what they wrote without waiting itself.
__device__ __forceinline__ void wait_before_the_next_begins() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\ngriddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// The same sum in every lane, always added in the same order.
__device__ __forceinline__ float warp_sum(float x) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}
