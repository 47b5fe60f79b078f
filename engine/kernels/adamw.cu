// AdamW and the clipping of gradients, over all tensors in one launch. Operation by operation as the CPU computes it: nothing is
// fused that rounds twice there.
#include "common.cuh"

// Elements of a block.
#define CHUNK 4096
#define THREADS 256

// What is trained alike: 80 bytes.
struct __align__(16) Tensor {
    float* value;         // at byte 0: rows · cols, dense, as m and v
    float* m;             // 8
    float* v;             // 16
    const float* grad;    // 24: (rows, cols), pitch ld_grad
    bf16* out;            // 32: (rows, cols), pitch ld_out, or null
    int rows, cols;       // 40, 44
    int ld_grad, ld_out;  // 48, 52
    float grad_scale;     // 56: of the gradient, before anything else
    float out_scale;      // 60: out = value · out_scale
    float lr_ratio;       // 64: of the learning rate
    float weight_decay;   // 68
    // 72: unused
};
static_assert(sizeof(Tensor) == 80, "the host writes this layout");

// The part of a tensor from element `first` on, a multiple of CHUNK, that a block works on.
struct Chunk {
    int tensor, first;
};

// The numbers of a step: 24 bytes.
struct Step {
    float lr, beta1, beta2, eps;
    float correction1;  // 1 − β₁ᵗ
    float v_scale;      // 1/√(1 − β₂ᵗ)
};

// Where an element lies in a pitched matrix.
__device__ __forceinline__ size_t place(int at, int cols, int ld) { return size_t(at / cols) * ld + at % cols; }

// Calls `four(element)` for whole groups of 4 that lie in one row at a place of 16 bytes, else `one(element)`.
template <typename Four, typename One>
__device__ __forceinline__ void each(const Tensor& t, int first, Four four, One one) {
    int end = min(first + CHUNK, t.rows * t.cols);
    if (t.cols % 4 == 0) {
        for (int at = first + 4 * threadIdx.x; at < end; at += 4 * THREADS) four(at);
    } else {
        for (int at = first + threadIdx.x; at < end; at += THREADS) one(at);
    }
}

__device__ __forceinline__ double block_sum(double x, double* of_thread) {
    of_thread[threadIdx.x] = x;
    for (u32 width = blockDim.x / 2; width > 0; width /= 2) {
        __syncthreads();
        if (threadIdx.x < width) of_thread[threadIdx.x] += of_thread[threadIdx.x + width];
    }
    __syncthreads();
    return of_thread[0];
}

// partial[block] = Σ (grad · grad_scale)² of a chunk. A block of 256 threads for each chunk.
extern "C" __global__ void __launch_bounds__(THREADS)
    adamw_squares(const Tensor* __restrict__ tensors, const Chunk* __restrict__ chunks, double* __restrict__ partial) {
    __shared__ double of_thread[THREADS];
    Chunk chunk = chunks[blockIdx.x];
    const Tensor t = tensors[chunk.tensor];
    double sum = 0.0;
    auto add = [&](float g) {
        double scaled = double(__fmul_rn(g, t.grad_scale));
        sum += scaled * scaled;
    };
    each(
        t, chunk.first,
        [&](int at) {
            float4 g = *(const float4*)(t.grad + place(at, t.cols, t.ld_grad));
            add(g.x), add(g.y), add(g.z), add(g.w);
        },
        [&](int at) { add(t.grad[place(at, t.cols, t.ld_grad)]); });
    sum = block_sum(sum, of_thread);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// result[0] is the norm, result[1] what gradients are multiplied with so that it is at most `max_norm`; ≤ 0: 1.
// Source: torch's `clip_grad_norm_`. One block of 1024 threads.
extern "C" __global__ void __launch_bounds__(1024)
    adamw_norm(const double* __restrict__ partial, int n, float max_norm, float* __restrict__ result) {
    __shared__ double of_thread[1024];
    double sum = 0.0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum, of_thread);
    if (threadIdx.x != 0) return;
    float norm = float(sqrt(sum));
    result[0] = norm;
    result[1] = max_norm > 0.0f ? fminf(__fdiv_rn(max_norm, __fadd_rn(norm, 1e-6f)), 1.0f) : 1.0f;
}

struct Rule {
    float grad_scale, clip, beta1, rest1, beta2, rest2, step_size, v_scale, keep, eps;

    // The new value; `m` and `v` become new.
    __device__ __forceinline__ float update(float x, float& m, float& v, float g) const {
        g = __fmul_rn(__fmul_rn(g, grad_scale), clip);
        m = __fadd_rn(__fmul_rn(beta1, m), __fmul_rn(rest1, g));
        v = __fadd_rn(__fmul_rn(beta2, v), __fmul_rn(__fmul_rn(rest2, g), g));
        float root = __fadd_rn(__fmul_rn(__fsqrt_rn(v), v_scale), eps);
        return __fsub_rn(__fmul_rn(x, keep), __fdiv_rn(__fmul_rn(step_size, m), root));
    }
};

__device__ __forceinline__ void publish(const Tensor& t, int at, float4 x) {
    bf16* to = t.out + place(at, t.cols, t.ld_out);
    *(uint2*)to = make_uint2(to_bf16x2(__fmul_rn(x.x, t.out_scale), __fmul_rn(x.y, t.out_scale)),
                             to_bf16x2(__fmul_rn(x.z, t.out_scale), __fmul_rn(x.w, t.out_scale)));
}

__device__ __forceinline__ void publish(const Tensor& t, int at, float x) {
    t.out[place(at, t.cols, t.ld_out)] = to_bf16(__fmul_rn(x, t.out_scale));
}

// One step. A block of 256 threads for each chunk.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    adamw_update(const Tensor* __restrict__ tensors, const Chunk* __restrict__ chunks, const float* __restrict__ result,
                 const Step* __restrict__ step) {
    Chunk chunk = chunks[blockIdx.x];
    const Tensor t = tensors[chunk.tensor];
    float lr = __fmul_rn(step->lr, t.lr_ratio);
    Rule rule;
    rule.grad_scale = t.grad_scale;
    rule.clip = result[1];
    rule.beta1 = step->beta1, rule.rest1 = __fsub_rn(1.0f, step->beta1);
    rule.beta2 = step->beta2, rule.rest2 = __fsub_rn(1.0f, step->beta2);
    rule.step_size = float(double(lr) / double(step->correction1));
    rule.v_scale = step->v_scale;
    rule.keep = __fsub_rn(1.0f, __fmul_rn(lr, t.weight_decay));
    rule.eps = step->eps;
    each(
        t, chunk.first,
        [&](int at) {
            float4 g = *(const float4*)(t.grad + place(at, t.cols, t.ld_grad));
            float4 x = *(float4*)(t.value + at), m = *(float4*)(t.m + at), v = *(float4*)(t.v + at);
            x.x = rule.update(x.x, m.x, v.x, g.x);
            x.y = rule.update(x.y, m.y, v.y, g.y);
            x.z = rule.update(x.z, m.z, v.z, g.z);
            x.w = rule.update(x.w, m.w, v.w, g.w);
            *(float4*)(t.value + at) = x, *(float4*)(t.m + at) = m, *(float4*)(t.v + at) = v;
            if (t.out) publish(t, at, x);
        },
        [&](int at) {
            float m = t.m[at], v = t.v[at];
            float x = rule.update(t.value[at], m, v, t.grad[place(at, t.cols, t.ld_grad)]);
            t.value[at] = x, t.m[at] = m, t.v[at] = v;
            if (t.out) publish(t, at, x);
        });
}

// Only writes what a step would: out = value · out_scale. A block of 256 threads for each chunk.
extern "C" __global__ void __launch_bounds__(THREADS)
    adamw_publish(const Tensor* __restrict__ tensors, const Chunk* __restrict__ chunks) {
    Chunk chunk = chunks[blockIdx.x];
    const Tensor t = tensors[chunk.tensor];
    if (!t.out) return;
    each(
        t, chunk.first, [&](int at) { publish(t, at, *(const float4*)(t.value + at)); },
        [&](int at) { publish(t, at, t.value[at]); });
}
