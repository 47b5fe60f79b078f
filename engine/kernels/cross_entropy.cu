// Cross entropy of rows of logits and its gradient, one block for a row. Dynamic shared memory, any number of bytes, keeps the
// beginning of the row from the first pass for the second.
#include "common.cuh"

#define THREADS 1024
#define LOWEST -3.402823466e38f

// Eight logits as they lie in memory.
template <typename X> struct Part;

template <> struct Part<bf16> {
    uint4 bits;

    __device__ __forceinline__ void load(const bf16* row, int i) { bits = ((const uint4*)row)[i]; }
    __device__ __forceinline__ void keep(uint4* kept, int i, int) const { kept[i] = bits; }
    __device__ __forceinline__ void restore(const uint4* kept, int i, int) { bits = kept[i]; }
    __device__ __forceinline__ void unpack(float (&x)[8]) const {
        x[0] = low_float(bits.x), x[1] = high_float(bits.x), x[2] = low_float(bits.y), x[3] = high_float(bits.y);
        x[4] = low_float(bits.z), x[5] = high_float(bits.z), x[6] = low_float(bits.w), x[7] = high_float(bits.w);
    }
};

template <> struct Part<float> {
    float4 a, b;

    __device__ __forceinline__ void load(const float* row, int i) {
        a = ((const float4*)row)[2 * i], b = ((const float4*)row)[2 * i + 1];
    }
    __device__ __forceinline__ void keep(uint4* kept, int i, int n) const {
        ((float4*)kept)[i] = a, ((float4*)kept)[n + i] = b;
    }
    __device__ __forceinline__ void restore(const uint4* kept, int i, int n) {
        a = ((const float4*)kept)[i], b = ((const float4*)kept)[n + i];
    }
    __device__ __forceinline__ void unpack(float (&x)[8]) const {
        x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
        x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    }
};

__device__ __forceinline__ float value(bf16 x) { return to_float(x); }
__device__ __forceinline__ float value(float x) { return x; }

// e^x for x ≤ 0 within 1e-6 of 1; 0 where it would be subnormal.
__device__ __forceinline__ float exponential(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
    return y;
}

// tanh x within 1e-6.
__device__ __forceinline__ float tanh_of(float x) { return 1.0f - __fdividef(2.0f, 1.0f + __expf(2.0f * x)); }

// What part `i` of a row says: −∞ from column V on. With a cap the slope of each as well.
template <bool CAPPED, typename X>
__device__ __forceinline__ void values(const Part<X>& part, int i, int V, float cap, float inverse, float (&x)[8], float (&slope)[8]) {
    part.unpack(x);
    if (CAPPED) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float share = tanh_of(x[j] * inverse);
            x[j] = cap * share;
            slope[j] = 1.0f - share * share;
        }
    }
    if (8 * i + 8 > V) {
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (8 * i + j >= V) x[j] = __int_as_float(0xff800000), slope[j] = 0.0f;
    }
}

// The largest of some logits and Σ e^(logit − largest).
struct Sum {
    float top, total;

    __device__ __forceinline__ void take(const float (&x)[8]) {
        float most = x[0];
#pragma unroll
        for (int j = 1; j < 8; j++) most = fmaxf(most, x[j]);
        if (most > top) {
            total *= exponential(top - most);
            top = most;
        }
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; j++) sum += exponential(x[j] - top);
        total += sum;
    }

    __device__ __forceinline__ void over_warp() {
        float most = warp_max(top);
        total = warp_sum(total * exponential(top - most));
        top = most;
    }
};

template <bool CAPPED, int AT_ONCE, typename X>
__device__ __forceinline__ void row_of(const X* logits, int label, float cap, float scale, float* logprob, int* correct,
                                       bf16* d_logits, int ld_d, int V) {
    extern __shared__ uint4 kept[];
    __shared__ Sum of_warp[WARP];
    int n_parts = (V + 7) / 8, step = blockDim.x;
    u32 n_bytes;
    asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(n_bytes));
    int n_kept = d_logits ? min(n_parts, int(n_bytes / (8 * sizeof(X)))) : 0;
    float inverse = CAPPED ? 1.0f / cap : 0.0f, target = 0.0f;
    // Before the gradient takes its place.
    if (threadIdx.x == 0) target = value(logits[label]);

    Sum sum = {LOWEST, 0.0f};
    float x[8], slope[8];
    for (int first = threadIdx.x; first < n_parts; first += AT_ONCE * step) {
        Part<X> parts[AT_ONCE];
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++)
            if (first + u * step < n_parts) parts[u].load(logits, first + u * step);
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            int i = first + u * step;
            if (i >= n_parts) break;
            if (i < n_kept) parts[u].keep(kept, i, n_kept);
            values<CAPPED>(parts[u], i, V, cap, inverse, x, slope);
            sum.take(x);
        }
    }
    sum.over_warp();
    u32 lane = threadIdx.x % WARP;
    if (lane == 0) of_warp[threadIdx.x / WARP] = sum;
    __syncthreads();
    sum = lane < blockDim.x / WARP ? of_warp[lane] : Sum{LOWEST, 0.0f};
    sum.over_warp();
    if (threadIdx.x == 0) {
        if (CAPPED) target = cap * tanh_of(target * inverse);
        *logprob = target - sum.top - logf(sum.total);
        *correct = target == sum.top;
    }
    if (!d_logits) return;

    float factor = scale / sum.total;
    // From the end: what was read last is nearest.
    int n_out = ld_d / 8, rounds = (n_out + step - 1) / step;
    for (int last = rounds - 1; last >= 0; last -= AT_ONCE) {
        Part<X> parts[AT_ONCE];
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            int i = threadIdx.x + (last - u) * step;
            if (last < u || i >= n_parts) continue;
            if (i < n_kept) parts[u].restore(kept, i, n_kept);
            else parts[u].load(logits, i);
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            int i = threadIdx.x + (last - u) * step;
            if (last < u || i >= n_out) continue;
            uint4 out = make_uint4(0, 0, 0, 0);
            if (i < n_parts) {
                values<CAPPED>(parts[u], i, V, cap, inverse, x, slope);
#pragma unroll
                for (int j = 0; j < 8; j++) x[j] = exponential(x[j] - sum.top) * factor;
                if (i == label / 8) {
#pragma unroll
                    for (int j = 0; j < 8; j++)
                        if (j == label % 8) x[j] -= scale;
                }
                if (CAPPED) {
#pragma unroll
                    for (int j = 0; j < 8; j++) x[j] *= slope[j];
                }
                out = make_uint4(to_bf16x2(x[0], x[1]), to_bf16x2(x[2], x[3]), to_bf16x2(x[4], x[5]), to_bf16x2(x[6], x[7]));
            }
            ((uint4*)d_logits)[i] = out;
        }
    }
}

template <int AT_ONCE, typename X>
__device__ __forceinline__ void cross_entropy(const X* logits, int ld, const int* labels, float cap, float scale, float* logprobs,
                                              int* correct, bf16* d_logits, int ld_d, int n_rows, int V) {
    size_t row = blockIdx.x;
    if (row >= n_rows) return;
    logits += row * ld;
    if (d_logits) d_logits += row * ld_d;
    int label = labels[row];
    if (label < 0) {
        if (threadIdx.x == 0) logprobs[row] = 0.0f, correct[row] = 0;
        if (!d_logits) return;
        for (int i = threadIdx.x; i < ld_d / 8; i += blockDim.x) ((uint4*)d_logits)[i] = make_uint4(0, 0, 0, 0);
    } else if (cap > 0.0f) {
        row_of<true, AT_ONCE>(logits, label, cap, scale, logprobs + row, correct + row, d_logits, ld_d, V);
    } else {
        row_of<false, AT_ONCE>(logits, label, cap, scale, logprobs + row, correct + row, d_logits, ld_d, V);
    }
}

// For each row its log p(label), whether the label's logit is the largest, and the gradient of −Σ log p · `scale`, whose columns
// V to ld_d become 0; `d_logits` null: no gradient. A row with a label below 0 counts for nothing: its log p, `correct` and gradient
// are 0. `cap`: logits z become cap·tanh(z/cap) first, 0: they do not. Shapes: `logits` (n_rows, V), `d_logits` (n_rows, ld_d).

extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_f32(const float* __restrict__ logits, int ld, const int* __restrict__ labels, float cap, float scale,
                      float* __restrict__ logprobs, int* __restrict__ correct, bf16* __restrict__ d_logits, int ld_d, int n_rows,
                      int V) {
    cross_entropy<2>(logits, ld, labels, cap, scale, logprobs, correct, d_logits, ld_d, n_rows, V);
}

// `d_logits` may be `logits`, with the same pitch.
extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_bf16(const bf16* logits, int ld, const int* __restrict__ labels, float cap, float scale,
                       float* __restrict__ logprobs, int* __restrict__ correct, bf16* d_logits, int ld_d, int n_rows, int V) {
    cross_entropy<4>(logits, ld, labels, cap, scale, logprobs, correct, d_logits, ld_d, n_rows, V);
}

// Adds −Σ logprobs to *loss_sum and Σ correct to *n_correct. One block of 1024 threads.
extern "C" __global__ void __launch_bounds__(1024)
    cross_entropy_sums(const float* __restrict__ logprobs, const int* __restrict__ correct, int n, double* loss_sum,
                       u64* n_correct) {
    __shared__ double losses[1024];
    __shared__ u64 hits[1024];
    double loss = 0.0;
    u64 hit = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) loss -= double(logprobs[i]), hit += correct[i];
    losses[threadIdx.x] = loss, hits[threadIdx.x] = hit;
    for (u32 width = 512; width > 0; width /= 2) {
        __syncthreads();
        if (threadIdx.x >= width) continue;
        losses[threadIdx.x] += losses[threadIdx.x + width];
        hits[threadIdx.x] += hits[threadIdx.x + width];
    }
    if (threadIdx.x == 0) *loss_sum += losses[0], *n_correct += hits[0];
}
