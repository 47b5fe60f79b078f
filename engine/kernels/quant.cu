// Frozen weights in few bits become bf16: the codec's f32 value, rounded. Codes lie row after row without padding; the result has a
// pitch. A thread makes eight values of a row at a time; any grid, any number of threads.
#include "common.cuh"

#define THREADS 512

// The values of the 16 codes. Source: QLoRA, appendix E.
__device__ const float NF4[16] = {
    -1.0f,        -0.6961928f,  -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
    0.0795803f,   0.1609302f,   0.2461123f,   0.33791524f, 0.44070983f,  0.562617f,    0.72295684f,   1.0f,
};

// The values of bitsandbytes' dynamic 8-bit codes: zero, one, and for each decade from 10^-6 on twice as many numbers as for the
// one below, evenly over its upper nine tenths, with both signs.
struct DynamicMap {
    float value[256];

    // Boundary `i` of `n` equal parts of [0.1, 1], as PyTorch's `linspace` rounds it.
    static constexpr float boundary(int n, int i) {
        double step = double((1.0f - 0.1f) / float(n));
        return i < (n + 1) / 2 ? float(double(0.1f) + step * double(i)) : float(1.0 - step * double(n - i));
    }

    constexpr DynamicMap() : value() {
        constexpr float decades[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
        value[255] = 1.0f;
        for (int decade = 0; decade < 7; decade++) {
            int n = 1 << decade;
            for (int i = 0; i < n; i++) {
                float mean = (boundary(n, i) + boundary(n, i + 1)) / 2.0f;
                value[127 + n + i] = decades[decade] * mean;
                value[127 - n - i] = -(decades[decade] * mean);
            }
        }
    }
};
__device__ const DynamicMap DYNAMIC;

__device__ __forceinline__ uint4 pack(const float (&x)[8]) {
    return make_uint4(to_bf16x2(x[0], x[1]), to_bf16x2(x[2], x[3]), to_bf16x2(x[4], x[5]), to_bf16x2(x[6], x[7]));
}

// Fills `out` (rows, columns): `eight(element, row, x)` makes eight values from an element of the flattened matrix on, a multiple of 8,
// and `one(element, row)` makes one.
template <typename Eight, typename One>
__device__ __forceinline__ void fill(bf16* out, int ld, int rows, int columns, Eight eight, One one) {
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        size_t first = size_t(row) * columns;
        bf16* to = out + size_t(row) * ld;
        if (columns % 8 == 0) {
            for (int at = 8 * threadIdx.x; at < columns; at += 8 * blockDim.x) {
                float x[8];
                eight(first + at, row, x);
                *(uint4*)(to + at) = pack(x);
            }
        } else {
            for (int at = threadIdx.x; at < columns; at += blockDim.x) to[at] = to_bf16(one(first + at, row));
        }
    }
}

// Two codes to a byte, the first in the high half; 64 elements of the flattened matrix share a scale. `scales` null: a scale is
// `offset` more than a dynamic 8-bit code in `differences`, of which 256 share one of `absmax`.
extern "C" __global__ void __launch_bounds__(THREADS)
    dequantize_nf4(const unsigned char* __restrict__ codes, const float* __restrict__ scales,
                   const unsigned char* __restrict__ differences, const float* __restrict__ absmax, float offset,
                   bf16* __restrict__ out, int ld, int rows, int columns) {
    // A column for each lane, which is a bank of its own.
    __shared__ float map[16 * WARP];
    __shared__ float dynamic[256];
    for (int i = threadIdx.x; i < 16 * WARP; i += blockDim.x) map[i] = NF4[i / WARP];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) dynamic[i] = DYNAMIC.value[i];
    __syncthreads();
    const float* mine = map + threadIdx.x % WARP;
    auto scale = [&](size_t at) {
        size_t block = at / 64;
        if (scales) return scales[block];
        return __fadd_rn(__fmul_rn(dynamic[differences[block]], absmax[block / 256]), offset);
    };
    fill(
        out, ld, rows, columns,
        [&](size_t at, int, float (&x)[8]) {
            u32 eight = *(const u32*)(codes + at / 2);
            float s = scale(at);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                u32 code = eight >> (j / 2 * 8 + (j % 2 ? 0 : 4)) & 15;
                x[j] = __fmul_rn(mine[code * WARP], s);
            }
        },
        [&](size_t at, int) {
            u32 code = codes[at / 2] >> (at % 2 ? 0 : 4) & 15;
            return __fmul_rn(mine[code * WARP], scale(at));
        });
}

__device__ __forceinline__ float int8(u32 code, float scale) {
    return __fmul_rn(__fmul_rn(float((signed char)code), scale), 1.0f / 127.0f);
}

// Signed codes, and for each row the magnitude that 127 stands for.
extern "C" __global__ void __launch_bounds__(THREADS)
    dequantize_int8(const unsigned char* __restrict__ codes, const float* __restrict__ scales, bf16* __restrict__ out, int ld,
                    int rows, int columns) {
    fill(
        out, ld, rows, columns,
        [&](size_t at, int row, float (&x)[8]) {
            uint2 eight = *(const uint2*)(codes + at);
            float s = scales[row];
#pragma unroll
            for (int j = 0; j < 4; j++) x[j] = int8(eight.x >> 8 * j, s), x[4 + j] = int8(eight.y >> 8 * j, s);
        },
        [&](size_t at, int row) { return int8(codes[at], scales[row]); });
}

// The value of an e4m3 code, which is that of an f32 with the same fields times 2^120; 0x7f is NaN.
__device__ __forceinline__ float e4m3(u32 code) {
    float x = __fmul_rn(__uint_as_float((code & 0x80) << 24 | (code & 0x7f) << 20), 0x1p120f);
    return (code & 0x7f) == 0x7f ? __uint_as_float(0x7fc00000) : x;
}

// Codes of float8_e4m3fn, and for each row what they are multiplied with.
extern "C" __global__ void __launch_bounds__(THREADS)
    dequantize_fp8(const unsigned char* __restrict__ codes, const float* __restrict__ scales, bf16* __restrict__ out, int ld,
                   int rows, int columns) {
    fill(
        out, ld, rows, columns,
        [&](size_t at, int row, float (&x)[8]) {
            uint2 eight = *(const uint2*)(codes + at);
            float s = scales[row];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                x[j] = __fmul_rn(e4m3(eight.x >> 8 * j & 0xff), s);
                x[4 + j] = __fmul_rn(e4m3(eight.y >> 8 * j & 0xff), s);
            }
        },
        [&](size_t at, int row) { return __fmul_rn(e4m3(codes[at]), scales[row]); });
}

// Blocks of a GGUF file: an f16 scale and 32 signed codes, 34 bytes; `columns` is a multiple of 32.
extern "C" __global__ void __launch_bounds__(THREADS)
    dequantize_q8_0(const unsigned char* __restrict__ blocks, bf16* __restrict__ out, int ld, int rows, int columns) {
    fill(
        out, ld, rows, columns,
        [&](size_t at, int, float (&x)[8]) {
            const unsigned short* block = (const unsigned short*)(blocks + at / 32 * 34);
            float s;
            asm("cvt.f32.f16 %0, %1;" : "=f"(s) : "h"(block[0]));
            const unsigned short* pairs = block + 1 + at % 32 / 2;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                u32 pair = pairs[j];
                x[2 * j] = __fmul_rn(float((signed char)pair), s);
                x[2 * j + 1] = __fmul_rn(float((signed char)(pair >> 8)), s);
            }
        },
        [&](size_t, int) { return 0.0f; });
}
