// Gated linear units: act(gate) ∘ up. Any number of threads; grid (T, any).
#include "common.cuh"

#define SILU 0
#define GELU_TANH 1

// √(2/π), and the cubic term's factor.
#define GELU_SCALE 0.7978846f
#define GELU_CUBE 0.044715f

__device__ __forceinline__ void unpack(uint4 a, float (&x)[8]) {
    x[0] = low_float(a.x), x[1] = high_float(a.x), x[2] = low_float(a.y), x[3] = high_float(a.y);
    x[4] = low_float(a.z), x[5] = high_float(a.z), x[6] = low_float(a.w), x[7] = high_float(a.w);
}

__device__ __forceinline__ uint4 pack(const float (&x)[8]) {
    return make_uint4(to_bf16x2(x[0], x[1]), to_bf16x2(x[2], x[3]), to_bf16x2(x[4], x[5]), to_bf16x2(x[6], x[7]));
}

// σ(x); the approximations are far more exact than bf16.
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// act(g) = g · the result: ½(1 + tanh u) = σ(2u).
template <int ACT> __device__ __forceinline__ float gate_share(float g) {
    return sigmoid(ACT == SILU ? g : 2.0f * GELU_SCALE * (g + GELU_CUBE * g * g * g));
}

template <int ACT> __device__ __forceinline__ float product(float g, float u) { return g * gate_share<ACT>(g) * u; }

// `g` and `u` become their gradients, the result is their product.
template <int ACT> __device__ __forceinline__ float differentiate(float& g, float& u, float d) {
    float share = gate_share<ACT>(g), act = g * share, inner = act * u;
    float slope = ACT == SILU ? 1.0f : 2.0f * GELU_SCALE * (1.0f + 3.0f * GELU_CUBE * g * g);
    g = d * u * (share + act * (1.0f - share) * slope);
    u = d * act;
    return inner;
}

template <int ACT> __device__ __forceinline__ void forward(const bf16* gate, bf16* inner, int F) {
    const bf16* up = gate + F;
    if (F % 8 == 0) {
        for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < F / 8; i += gridDim.y * blockDim.x) {
            float g[8], u[8];
            unpack(((const uint4*)gate)[i], g);
            unpack(((const uint4*)up)[i], u);
            for (int j = 0; j < 8; j++) g[j] = product<ACT>(g[j], u[j]);
            ((uint4*)inner)[i] = pack(g);
        }
    } else {
        for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < F; i += gridDim.y * blockDim.x)
            inner[i] = to_bf16(product<ACT>(to_float(gate[i]), to_float(up[i])));
    }
}

// Shapes: `gate_up` (T, 2F), `inner` (T, F).
extern "C" __global__ void __launch_bounds__(512) glu_forward(const bf16* __restrict__ gate_up, int ld,
                                                              bf16* __restrict__ inner, int ld_inner, int T, int F, int act) {
    wait_for_kernels_before();
    size_t row = blockIdx.x;
    if (row >= T) return;
    if (act == SILU) forward<SILU>(gate_up + row * ld, inner + row * ld_inner, F);
    else forward<GELU_TANH>(gate_up + row * ld, inner + row * ld_inner, F);
}

template <int ACT> __device__ __forceinline__ void backward(const bf16* d, bf16* gate, bf16* inner, int F) {
    bf16* up = gate + F;
    if (F % 8 == 0) {
        for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < F / 8; i += gridDim.y * blockDim.x) {
            float g[8], u[8], y[8];
            unpack(((const uint4*)gate)[i], g);
            unpack(((const uint4*)up)[i], u);
            unpack(((const uint4*)d)[i], y);
            for (int j = 0; j < 8; j++) y[j] = differentiate<ACT>(g[j], u[j], y[j]);
            ((uint4*)gate)[i] = pack(g);
            ((uint4*)up)[i] = pack(u);
            if (inner) ((uint4*)inner)[i] = pack(y);
        }
    } else {
        for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < F; i += gridDim.y * blockDim.x) {
            float g = to_float(gate[i]), u = to_float(up[i]);
            float y = differentiate<ACT>(g, u, to_float(d[i]));
            gate[i] = to_bf16(g), up[i] = to_bf16(u);
            if (inner) inner[i] = to_bf16(y);
        }
    }
}

// `gate_up` (T, 2F) becomes its gradient; `d_inner` (T, F) is that of the product. `inner`, unless null, becomes the product again
// and may be `d_inner`.
extern "C" __global__ void __launch_bounds__(512) glu_backward(const bf16* d_inner, int ld_d, bf16* gate_up, int ld, bf16* inner,
                                                               int ld_inner, int T, int F, int act) {
    size_t row = blockIdx.x;
    if (row >= T) return;
    d_inner += row * ld_d;
    gate_up += row * ld;
    if (inner) inner += row * ld_inner;
    if (act == SILU) backward<SILU>(d_inner, gate_up, inner, F);
    else backward<GELU_TANH>(d_inner, gate_up, inner, F);
}
