// Rotary positions, and the norms of queries and keys before them.
#include "common.cuh"

__device__ __forceinline__ void load(const float* p, float (&x)[8]) {
    float4 a = ((const float4*)p)[0], b = ((const float4*)p)[1];
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
    x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

__device__ __forceinline__ void unpack(uint4 a, float (&x)[8]) {
    x[0] = low_float(a.x), x[1] = high_float(a.x), x[2] = low_float(a.y), x[3] = high_float(a.y);
    x[4] = low_float(a.z), x[5] = high_float(a.z), x[6] = low_float(a.w), x[7] = high_float(a.w);
}

__device__ __forceinline__ uint4 pack(const float (&x)[8]) {
    return make_uint4(to_bf16x2(x[0], x[1]), to_bf16x2(x[2], x[3]), to_bf16x2(x[4], x[5]), to_bf16x2(x[6], x[7]));
}

// Cosine and sine, (T, half) each, of position · inv_freq rounded to f32, times `attention_factor`. Any grid.
extern "C" __global__ void __launch_bounds__(256) rope_angles(const int* __restrict__ positions,
                                                              const float* __restrict__ inv_freq, float attention_factor,
                                                              float* __restrict__ cos, float* __restrict__ sin, int T,
                                                              int half) {
    wait_for_kernels_before();
    u32 n = u32(T) * half;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        double s, c;
        sincos(double(__fmul_rn(float(positions[i / half]), inv_freq[i % half])), &s, &c);
        cos[i] = __fmul_rn(float(c), attention_factor);
        sin[i] = __fmul_rn(float(s), attention_factor);
    }
}

__device__ __forceinline__ void turn(float& x, float& y, float cos, float sin) {
    float turned = x * cos - y * sin;
    y = y * cos + x * sin;
    x = turned;
}

// Turns the first `n_rotated` heads of C channels of each row in place: pairs (j, j + rotary_dim/2) of their first `rotary_dim`
// channels, or (2j, 2j + 1) if interleaved. `direction`: 1, or −1 for gradients. Shapes: `cos` and `sin` (T, rotary_dim/2).
// One block for a row; a thread has the same channels of every so many heads, thus keeps their angles.
extern "C" __global__ void __launch_bounds__(256) rope_rotate(bf16* __restrict__ qkv, int ld, const float* __restrict__ cos,
                                                              const float* __restrict__ sin, int T, int n_rotated, int C,
                                                              int rotary_dim, int interleaved, float direction) {
    wait_for_kernels_before();
    int row = blockIdx.x, half = rotary_dim / 2;
    if (row >= T) return;
    qkv += size_t(row) * ld;
    cos += size_t(row) * half;
    sin += size_t(row) * half;
    bool whole = C % 8 == 0 && (interleaved ? rotary_dim : half) % 8 == 0;
    int per_head = !whole ? half : interleaved ? rotary_dim / 8 : half / 8;
    // Threads that share a head, if a block has as many; parts of heads otherwise follow each other.
    int at_once = max(int(blockDim.x) / per_head, 1);
    for (int part = threadIdx.x % per_head, head = threadIdx.x / per_head; part < per_head; part += blockDim.x) {
        if (head >= at_once) break;
        if (!whole) {
            float c = cos[part], s = direction * sin[part];
            int first = interleaved ? 2 * part : part, second = interleaved ? first + 1 : part + half;
            for (int h = head; h < n_rotated; h += at_once) {
                bf16* at = qkv + h * C;
                float x = to_float(at[first]), y = to_float(at[second]);
                turn(x, y, c, s);
                at[first] = to_bf16(x), at[second] = to_bf16(y);
            }
        } else if (interleaved) {
            float4 c = *(const float4*)(cos + 4 * part), s = *(const float4*)(sin + 4 * part);
            for (int h = head; h < n_rotated; h += at_once) {
                uint4* at = (uint4*)(qkv + h * C + 8 * part);
                float x[8];
                unpack(*at, x);
                turn(x[0], x[1], c.x, direction * s.x);
                turn(x[2], x[3], c.y, direction * s.y);
                turn(x[4], x[5], c.z, direction * s.z);
                turn(x[6], x[7], c.w, direction * s.w);
                *at = pack(x);
            }
        } else {
            float c[8], s[8];
            load(cos + 8 * part, c);
            load(sin + 8 * part, s);
            for (int j = 0; j < 8; j++) s[j] *= direction;
            for (int h = head; h < n_rotated; h += at_once) {
                uint4 *first = (uint4*)(qkv + h * C + 8 * part), *second = (uint4*)(qkv + h * C + half + 8 * part);
                float x[8], y[8];
                unpack(*first, x);
                unpack(*second, y);
                for (int j = 0; j < 8; j++) turn(x[j], y[j], c[j], s[j]);
                *first = pack(x), *second = pack(y);
            }
        }
    }
}

// The norm that a team of threads computes: `team` of them (a power of two, at most 32) for one norm of one row.
struct Group {
    size_t row;
    int index;    // among the norms of the row
    int first;    // channel
    int span;
    const float* weight;
    int lane;
    bool exists;  // Threads without one take part in the sums.
};

__device__ __forceinline__ Group group(const float* q_weight, int q_span, const float* k_weight, int k_span, int T,
                                       int query_size, int key_size, int team) {
    int of_q = query_size / q_span, n = of_q + key_size / k_span;
    u32 i = (blockIdx.x * blockDim.x + threadIdx.x) / team;
    Group g;
    g.row = i / n;
    g.index = i % n;
    bool is_q = g.index < of_q;
    g.first = is_q ? g.index * q_span : query_size + (g.index - of_q) * k_span;
    g.span = is_q ? q_span : k_span;
    g.weight = is_q ? q_weight : k_weight;
    g.lane = threadIdx.x % team;
    g.exists = g.row < T;
    return g;
}

__device__ __forceinline__ float team_sum(float x, int team) {
    for (int offset = team / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}

// Norms q and k within `qkv` with pitch `ld`, `q_span` channels of q and `k_span` of k at a time: C for a norm of each head, or H·C
// and K·C for one of all heads together, which are also the lengths of the weights; query_size is H·C, key_size K·C.
// `raw` keeps both as they were, (T, (H+K)·C), and `rstd` the factors, (T, query_size/q_span + key_size/k_span).
// T · norms of a row · team threads in all, team as in `Group`.
extern "C" __global__ void __launch_bounds__(256)
    qk_norm_forward(bf16* qkv, int ld, const float* __restrict__ q_weight, int q_span, const float* __restrict__ k_weight,
                    int k_span, float eps, bf16* __restrict__ raw, int ld_raw, float* __restrict__ rstd, int T, int query_size,
                    int key_size, int team) {
    wait_for_kernels_before();
    Group g = group(q_weight, q_span, k_weight, k_span, T, query_size, key_size, team);
    bf16* x = qkv + g.row * ld + g.first;
    bf16* keep = raw + g.row * ld_raw + g.first;
    bool whole = (q_span | k_span | query_size) % 8 == 0;
    int n_parts = !g.exists ? 0 : whole ? g.span / 8 : g.span;
    uint4 mine;
    float sum = 0.0f;
    for (int part = g.lane; part < n_parts; part += team) {
        if (whole) {
            uint4 bits = ((const uint4*)x)[part];
            if (part == g.lane) mine = bits;
            ((uint4*)keep)[part] = bits;
            float v[8];
            unpack(bits, v);
            for (int j = 0; j < 8; j++) sum += v[j] * v[j];
        } else {
            keep[part] = x[part];
            sum += to_float(x[part]) * to_float(x[part]);
        }
    }
    float r = 1.0f / sqrtf(team_sum(sum, team) / float(g.span) + eps);
    if (g.lane == 0 && g.exists) rstd[g.row * (query_size / q_span + key_size / k_span) + g.index] = r;
    for (int part = g.lane; part < n_parts; part += team) {
        if (whole) {
            float v[8], w[8];
            load(g.weight + 8 * part, w);
            unpack(part == g.lane ? mine : ((const uint4*)x)[part], v);
            for (int j = 0; j < 8; j++) v[j] = v[j] * r * w[j];
            ((uint4*)x)[part] = pack(v);
        } else {
            x[part] = to_bf16(to_float(x[part]) * r * g.weight[part]);
        }
    }
}

// The gradients of normed q and k within `d_qkv` become those of what they were; the rest as `qk_norm_forward`.
extern "C" __global__ void __launch_bounds__(256)
    qk_norm_backward(bf16* d_qkv, int ld, const float* __restrict__ q_weight, int q_span, const float* __restrict__ k_weight,
                     int k_span, const bf16* __restrict__ raw, int ld_raw, const float* __restrict__ rstd, int T,
                     int query_size, int key_size, int team) {
    Group g = group(q_weight, q_span, k_weight, k_span, T, query_size, key_size, team);
    bf16* d = d_qkv + g.row * ld + g.first;
    const bf16* x = raw + g.row * ld_raw + g.first;
    bool whole = (q_span | k_span | query_size) % 8 == 0;
    int n_parts = !g.exists ? 0 : whole ? g.span / 8 : g.span;
    float r = g.exists ? rstd[g.row * (query_size / q_span + key_size / k_span) + g.index] : 0.0f;
    uint4 my_x, my_d;
    float sum = 0.0f;
    for (int part = g.lane; part < n_parts; part += team) {
        if (whole) {
            uint4 bits_d = ((const uint4*)d)[part], bits_x = ((const uint4*)x)[part];
            if (part == g.lane) my_d = bits_d, my_x = bits_x;
            float dv[8], xv[8], w[8];
            load(g.weight + 8 * part, w);
            unpack(bits_d, dv);
            unpack(bits_x, xv);
            for (int j = 0; j < 8; j++) sum += dv[j] * w[j] * xv[j];
        } else {
            sum += to_float(d[part]) * g.weight[part] * to_float(x[part]);
        }
    }
    float c = team_sum(sum, team) * r * r * r / float(g.span);
    for (int part = g.lane; part < n_parts; part += team) {
        if (whole) {
            bool is_mine = part == g.lane;
            float dv[8], xv[8], w[8];
            load(g.weight + 8 * part, w);
            unpack(is_mine ? my_d : ((const uint4*)d)[part], dv);
            unpack(is_mine ? my_x : ((const uint4*)x)[part], xv);
            for (int j = 0; j < 8; j++) dv[j] = r * dv[j] * w[j] - c * xv[j];
            ((uint4*)d)[part] = pack(dv);
        } else {
            d[part] = to_bf16(r * to_float(d[part]) * g.weight[part] - c * to_float(x[part]));
        }
    }
}
