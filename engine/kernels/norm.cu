// Root-mean-square norms of rows, before a branch (of the f32 stream) and after one (of what its last linear gave, bf16).
// One block for a row (more blocks than rows do nothing); D ≤ 16 · threads, threads a multiple of 32 and at most 1024.
#include "common.cuh"

#define BLOCK __launch_bounds__(1024)

// Eight numbers, which one thread reads and writes at once.

__device__ __forceinline__ void load(const float* p, float (&x)[8]) {
    float4 a = ((const float4*)p)[0], b = ((const float4*)p)[1];
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
    x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

__device__ __forceinline__ void load(const bf16* p, float (&x)[8]) {
    uint4 a = *(const uint4*)p;
    x[0] = low_float(a.x), x[1] = high_float(a.x), x[2] = low_float(a.y), x[3] = high_float(a.y);
    x[4] = low_float(a.z), x[5] = high_float(a.z), x[6] = low_float(a.w), x[7] = high_float(a.w);
}

__device__ __forceinline__ void store(float* p, const float (&x)[8]) {
    ((float4*)p)[0] = make_float4(x[0], x[1], x[2], x[3]);
    ((float4*)p)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

__device__ __forceinline__ void store(bf16* p, const float (&x)[8]) {
    *(uint4*)p = make_uint4(to_bf16x2(x[0], x[1]), to_bf16x2(x[2], x[3]), to_bf16x2(x[4], x[5]), to_bf16x2(x[6], x[7]));
}

__device__ __forceinline__ void clear(float (&x)[8]) {
    for (int j = 0; j < 8; j++) x[j] = 0.0f;
}

// The same sum in every thread of the block, in one order. Once in a kernel.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float of_warp[WARP];
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = x;
    __syncthreads();
    u32 lane = threadIdx.x % WARP;
    return warp_sum(lane < blockDim.x / WARP ? of_warp[lane] : 0.0f);
}

// The column that part i of a thread begins at.
__device__ __forceinline__ int column(int i) { return 8 * (threadIdx.x + i * blockDim.x); }

// 1/√(mean(x²) + ε); the row stays in `x`, a thread having N parts of it.
template <int N, typename X>
__device__ __forceinline__ float factor(const X* from, float eps, int D, float (&x)[N][8]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (column(i) < D) load(from + column(i), x[i]);
        else clear(x[i]);
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++)
        for (int j = 0; j < 8; j++) sum += x[i][j] * x[i][j];
    return 1.0f / sqrtf(block_sum(sum) / float(D) + eps);
}

// rstd³·mean(g ∘ x), where g = d ∘ weight stays in `g` and the normed row in `x`.
template <int N, typename From, typename X>
__device__ __forceinline__ float share_of_x(const From* d, const X* of, const float* weight, float r, int D, float (&g)[N][8],
                                            float (&x)[N][8]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        clear(g[i]), clear(x[i]);
        if (column(i) < D) load(d + column(i), g[i]), load(of + column(i), x[i]);
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
        float w[8];
        clear(w);
        if (column(i) < D) load(weight + column(i), w);
        for (int j = 0; j < 8; j++) {
            g[i][j] *= w[j];
            sum += g[i][j] * x[i][j];
        }
    }
    return block_sum(sum) * r * r * r / float(D);
}

template <int N>
__device__ __forceinline__ void forward(const float* from, const float* weight, float eps, bf16* out, float* rstd, int D) {
    float x[N][8], w[8];
    // What comes after the sum is on its way before it, if registers allow.
    if (N == 1 && column(0) < D) load(weight + column(0), w);
    float r = factor<N>(from, eps, D, x);
    if (threadIdx.x == 0) *rstd = r;
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (column(i) >= D) continue;
        if (N > 1) load(weight + column(i), w);
        for (int j = 0; j < 8; j++) x[i][j] = x[i][j] * r * w[j];
        store(out + column(i), x[i]);
    }
}

// out[i] = x[rows[i]] · rstd[i] · weight. `rows` null: row i. `weight` null: out[i] = x[rows[i]], and `rstd` is not written.
// Shapes: `x` (T, D), `rstd` (n_rows).
extern "C" __global__ void BLOCK norm_forward(const float* __restrict__ x, const int* __restrict__ rows,
                                              const float* __restrict__ weight, float eps, bf16* __restrict__ out, int ld_out,
                                              float* __restrict__ rstd, int n_rows, int D) {
    wait_for_kernels_before();
    int row = blockIdx.x;
    if (row >= n_rows) return;
    x += size_t(rows ? rows[row] : row) * D;
    out += size_t(row) * ld_out;
    if (!weight) {
        for (int i = 0; column(i) < D; i++) {
            float part[8];
            load(x + column(i), part);
            store(out + column(i), part);
        }
    } else if (D <= 8 * int(blockDim.x)) {
        forward<1>(x, weight, eps, out, rstd + row, D);
    } else {
        forward<2>(x, weight, eps, out, rstd + row, D);
    }
}

template <int N>
__device__ __forceinline__ void backward(const bf16* d, const float* of, const float* weight, float r, float* stream,
                                         bf16* rounded, int D) {
    float g[N][8], x[N][8], s[8];
    if (N == 1 && column(0) < D) load(stream + column(0), s);
    float c = share_of_x<N>(d, of, weight, r, D, g, x);
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (column(i) >= D) continue;
        if (N > 1) load(stream + column(i), s);
        for (int j = 0; j < 8; j++) s[j] += r * g[i][j] - c * x[i][j];
        store(stream + column(i), s);
        if (rounded) store(rounded + column(i), s);
    }
}

// stream += rstd·g − x·rstd³·mean(g ∘ x) with g = d ∘ weight; `weight` null: stream += d, and `x` and `rstd` are not read.
// `rounded`, unless null, becomes the new stream. Shapes: `x` and `stream` (n_rows, D).
extern "C" __global__ void BLOCK norm_backward(const bf16* __restrict__ d, int ld_d, const float* __restrict__ x,
                                               const float* __restrict__ weight, const float* __restrict__ rstd,
                                               float* __restrict__ stream, bf16* __restrict__ rounded, int ld_rounded,
                                               int n_rows, int D) {
    int row = blockIdx.x;
    if (row >= n_rows) return;
    d += size_t(row) * ld_d;
    stream += size_t(row) * D;
    if (rounded) rounded += size_t(row) * ld_rounded;
    if (!weight) {
        for (int i = 0; column(i) < D; i++) {
            float g[8], s[8];
            load(d + column(i), g);
            load(stream + column(i), s);
            for (int j = 0; j < 8; j++) s[j] += g[j];
            store(stream + column(i), s);
            if (rounded) store(rounded + column(i), s);
        }
        return;
    }
    x += size_t(row) * D;
    if (D <= 8 * int(blockDim.x)) backward<1>(d, x, weight, rstd[row], stream, rounded, D);
    else backward<2>(d, x, weight, rstd[row], stream, rounded, D);
}

template <int N>
__device__ __forceinline__ void backward_row(const float* d, const float* of, const float* weight, float r, float* to, int D) {
    float g[N][8], x[N][8];
    float c = share_of_x<N>(d, of, weight, r, D, g, x);
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (column(i) >= D) continue;
        for (int j = 0; j < 8; j++) g[i][j] = r * g[i][j] - c * x[i][j];
        store(to + column(i), g[i]);
    }
}

// Row rows[i] of `stream` becomes the gradient of that row of `x`; other rows stay. `weight` null: it becomes d.
// Shapes: `d` (n_rows, D), `x` and `stream` (T, D), `rstd` (n_rows), as `norm_forward` with the same `rows` wrote it.
extern "C" __global__ void BLOCK norm_backward_rows(const float* __restrict__ d, const float* __restrict__ x,
                                                    const int* __restrict__ rows, const float* __restrict__ weight,
                                                    const float* __restrict__ rstd, float* __restrict__ stream, int n_rows,
                                                    int D) {
    int row = blockIdx.x;
    if (row >= n_rows) return;
    d += size_t(row) * D;
    size_t to = size_t(rows ? rows[row] : row) * D;
    if (!weight) {
        for (int i = 0; column(i) < D; i++) {
            float g[8];
            load(d + column(i), g);
            store(stream + to + column(i), g);
        }
    } else if (D <= 8 * int(blockDim.x)) {
        backward_row<1>(d, x + to, weight, rstd[row], stream + to, D);
    } else {
        backward_row<2>(d, x + to, weight, rstd[row], stream + to, D);
    }
}

// rstd[i] = 1/√(mean(y²) + ε) of row i.
extern "C" __global__ void BLOCK norm_factors(const bf16* __restrict__ y, int ld, float eps, float* __restrict__ rstd,
                                              int n_rows, int D) {
    wait_for_kernels_before();
    int row = blockIdx.x;
    if (row >= n_rows) return;
    float x[2][8];
    float r = factor<2>(y + size_t(row) * ld, eps, D, x);
    if (threadIdx.x == 0) rstd[row] = r;
}

// stream += y · rstd · weight. Shape: `stream` (n_rows, D). Any number of threads.
extern "C" __global__ void BLOCK norm_add(const bf16* __restrict__ y, int ld, const float* __restrict__ weight,
                                          const float* __restrict__ rstd, float* __restrict__ stream, int n_rows, int D) {
    wait_for_kernels_before();
    int row = blockIdx.x;
    if (row >= n_rows) return;
    y += size_t(row) * ld;
    stream += size_t(row) * D;
    float r = rstd[row];
    for (int i = 0; column(i) < D; i++) {
        float x[8], w[8], s[8];
        load(y + column(i), x);
        load(stream + column(i), s);
        load(weight + column(i), w);
        for (int j = 0; j < 8; j++) s[j] += x[j] * r * w[j];
        store(stream + column(i), s);
    }
}

template <int N>
__device__ __forceinline__ void backward_in_place(const bf16* y, const float* weight, float r, bf16* d, int D) {
    float g[N][8], x[N][8];
    float c = share_of_x<N>(d, y, weight, r, D, g, x);
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (column(i) >= D) continue;
        for (int j = 0; j < 8; j++) g[i][j] = r * g[i][j] - c * x[i][j];
        store(d + column(i), g[i]);
    }
}

// `d`, the gradient of the normed y, becomes that of y.
extern "C" __global__ void BLOCK norm_backward_in_place(const bf16* __restrict__ y, int ld_y, const float* __restrict__ weight,
                                                        const float* __restrict__ rstd, bf16* d, int ld_d, int n_rows, int D) {
    int row = blockIdx.x;
    if (row >= n_rows) return;
    y += size_t(row) * ld_y;
    d += size_t(row) * ld_d;
    if (D <= 8 * int(blockDim.x)) backward_in_place<1>(y, weight, rstd[row], d, D);
    else backward_in_place<2>(y, weight, rstd[row], d, D);
}

// out = x. Shape: `x` (n_rows, D). Any number of threads.
extern "C" __global__ void BLOCK round_rows(const float* __restrict__ x, bf16* __restrict__ out, int ld, int n_rows, int D) {
    int row = blockIdx.x;
    if (row >= n_rows) return;
    x += size_t(row) * D;
    out += size_t(row) * ld;
    for (int i = 0; column(i) < D; i++) {
        float part[8];
        load(x + column(i), part);
        store(out + column(i), part);
    }
}
