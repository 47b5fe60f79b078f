// Random matrices, for measurements on models without weights.
#include "common.cuh"

// A bijection of 64 bits that mixes well (splitmix64).
__device__ __forceinline__ u64 mix(u64 z) {
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// Uniform in ±amplitude, from the place in the matrix and the seed alone. Any grid.
extern "C" __global__ void __launch_bounds__(256) fill_uniform(bf16* out, int rows, int columns, int ld, float amplitude, u32 seed) {
    u64 n = u64(rows) * columns;
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += u64(gridDim.x) * blockDim.x) {
        float unit = float(mix(i + (u64(seed) << 40)) >> 40) * (1.0f / 8388608.0f) - 1.0f;
        out[(i / columns) * ld + i % columns] = to_bf16(unit * amplitude);
    }
}

// n words of random bits. Any grid.
extern "C" __global__ void __launch_bounds__(256) fill_bits(u32* out, u64 n, u32 seed) {
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += u64(gridDim.x) * blockDim.x)
        out[i] = u32(mix(i + (u64(seed) << 40)) >> 16);
}
