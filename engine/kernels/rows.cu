// Rows moved from one matrix to another.
#include "common.cuh"

__device__ __forceinline__ void unpack(uint4 a, float (&x)[8]) {
    x[0] = low_float(a.x), x[1] = high_float(a.x), x[2] = low_float(a.y), x[3] = high_float(a.y);
    x[4] = low_float(a.z), x[5] = high_float(a.z), x[6] = low_float(a.w), x[7] = high_float(a.w);
}

// stream[i] = table[tokens[i]] · scale. Shapes: `stream` (T, D), D a multiple of 4. One block for a row.
extern "C" __global__ void __launch_bounds__(1024) embed(const int* __restrict__ tokens, const bf16* __restrict__ table, int ld,
                                                         float scale, float* __restrict__ stream, int T, int D) {
    wait_for_kernels_before();
    size_t row = blockIdx.x;
    if (row >= T) return;
    table += size_t(tokens[row]) * ld;
    stream += row * D;
    for (int at = 8 * threadIdx.x; at + 8 <= D; at += 8 * blockDim.x) {
        float x[8];
        unpack(*(const uint4*)(table + at), x);
        *(float4*)(stream + at) = make_float4(x[0] * scale, x[1] * scale, x[2] * scale, x[3] * scale);
        *(float4*)(stream + at + 4) = make_float4(x[4] * scale, x[5] * scale, x[6] * scale, x[7] * scale);
    }
    int at = D / 8 * 8 + threadIdx.x;
    if (at < D) stream[at] = to_float(table[at]) * scale;
}

// n times 16 bytes. Any grid.
extern "C" __global__ void __launch_bounds__(1024) fill_zero(float4* p, u64 n) {
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += u64(gridDim.x) * blockDim.x)
        p[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// Any grid; matrices do not overlap.
extern "C" __global__ void __launch_bounds__(1024) copy_columns(const bf16* __restrict__ from, int ld_from,
                                                                bf16* __restrict__ to, int ld_to, int n_rows,
                                                                int n_columns) {
    u32 per_row = (n_columns + 7) / 8;
    u64 n = u64(n_rows) * per_row;
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += u64(gridDim.x) * blockDim.x) {
        u64 row = n >> 32 ? i / per_row : u32(i) / per_row;
        int at = 8 * int(i - row * per_row);
        const bf16* source = from + row * ld_from + at;
        bf16* target = to + row * ld_to + at;
        if (at + 8 <= n_columns) *(uint4*)target = *(const uint4*)source;
        else
            for (int j = 0; j < n_columns - at; j++) target[j] = source[j];
    }
}

// stream += d. Shapes: `stream` (T, D), D a multiple of 4. One block for a row.
extern "C" __global__ void __launch_bounds__(1024) add_bf16_to_stream(const bf16* __restrict__ d, int ld,
                                                                      float* __restrict__ stream, int T, int D) {
    size_t row = blockIdx.x;
    if (row >= T) return;
    d += row * ld;
    stream += row * D;
    for (int at = 8 * threadIdx.x; at + 8 <= D; at += 8 * blockDim.x) {
        float x[8];
        unpack(*(const uint4*)(d + at), x);
        float4 a = *(const float4*)(stream + at), b = *(const float4*)(stream + at + 4);
        *(float4*)(stream + at) = make_float4(a.x + x[0], a.y + x[1], a.z + x[2], a.w + x[3]);
        *(float4*)(stream + at + 4) = make_float4(b.x + x[4], b.y + x[5], b.z + x[6], b.w + x[7]);
    }
    int at = D / 8 * 8 + threadIdx.x;
    if (at < D) stream[at] += to_float(d[at]);
}
