// q, k, v [B, heads, N, D] of a joint projection x [B, N, 3·heads·D]: QK norm, rotary positions, rounded once.
//
// Macros: TX, TN, TT, TY the elements of x, of the norms' g and b, of the tables, of the results; NORM and ROPE 0 or 1;
// LANES threads a head, each with 8 neighbouring columns (LANES = D/8, a power of two up to 32, and half a rotated
// segment is a multiple of 8), or 0 for any D: then a warp takes a head, and a lane every 32nd column.
#include "types.cuh"

// Sizes; `table` is how far the tables move with the image, the head and the token.
struct Heads { i32 heads, n, d, half; float eps; i64 table[3]; };

// Eight neighbouring elements at an address that is aligned to all of them, 16 bytes an access.
template <class T> DEVICE void load_eight(float (&y)[8], const T* p) {
    const int COUNT = 16 / sizeof(T);
#pragma unroll
    for (int first = 0; first < 8; first += COUNT) {
        const uint4 chunk = *(const uint4*)(p + first);
#pragma unroll
        for (int i = 0; i < COUNT; i++) y[first + i] = load((const T*)&chunk + i);
    }
}
template <class T> DEVICE void store_eight(T* p, const float (&y)[8]) {
    const int COUNT = 16 / sizeof(T);
#pragma unroll
    for (int first = 0; first < 8; first += COUNT) {
        uint4 chunk;
#pragma unroll
        for (int i = 0; i < COUNT; i++) store((T*)&chunk + i, y[first + i]);
        *(uint4*)(p + first) = chunk;
    }
}

#if LANES
// A head a group of LANES threads. Whole warps run; those of heads that are not there compute the last one again.
extern "C" __global__ void __launch_bounds__(256) qkv_heads(
    const TX* __restrict__ x, const TN* __restrict__ q_g, const TN* __restrict__ q_b, const TN* __restrict__ k_g,
    const TN* __restrict__ k_b, const TT* __restrict__ cos, const TT* __restrict__ sin, TY* __restrict__ q,
    TY* __restrict__ k, TY* __restrict__ v, const Heads s, const i64 count)
{
    const i64 own = ((i64)blockIdx.x * 256 + threadIdx.x) / LANES;
    const i64 at = own < count ? own : count - 1;
    const int column = threadIdx.x % LANES * 8;
    // Neighbouring groups take neighbouring heads of one token, which lie side by side in x.
    const int head = (int)(at % s.heads);
    const int which = (int)(at / s.heads % 3);
    const i64 row = at / (3 * s.heads);
    const i64 image = row / s.n, token = row % s.n;

    float y[8];
    load_eight(y, x + (row * 3 + which) * s.heads * s.d + (i64)head * s.d + column);
#if NORM
    // All lanes of a warp take part in the sums, also those that hold a v.
    float sum = 0.f, squares = 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++) sum += y[i];
    const float mean = lanes_sum<LANES>(sum) / s.d;
#pragma unroll
    for (int i = 0; i < 8; i++) squares += (y[i] - mean) * (y[i] - mean);
    const float scale = 1.f / sqrtf(lanes_sum<LANES>(squares) / s.d + s.eps);
    if (which < 2) {
        float g[8], b[8];
        load_eight(g, (which ? k_g : q_g) + column);
        load_eight(b, (which ? k_b : q_b) + column);
#pragma unroll
        for (int i = 0; i < 8; i++) y[i] = (y[i] - mean) * scale * g[i] + b[i];
    }
#endif
#if ROPE
    const i64 t = image * s.table[0] + head * s.table[1] + token * s.table[2] + column;
    const bool lower = column % (2 * s.half) < s.half;
    float c[8] = {}, d[8] = {};
    if (which < 2) {
        load_eight(c, cos + t);
        load_eight(d, sin + t);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float other = __shfl_xor_sync(~0u, y[i], s.half / 8);
        if (which < 2) y[i] = y[i] * c[i] + (lower ? -other : other) * d[i];
    }
#endif
    TY* out = (which == 0 ? q : which == 1 ? k : v) + ((image * s.heads + head) * s.n + token) * s.d + column;
    if (own < count) store_eight(out, y);
}
#else
// A head a warp; what a rotation needs of other columns is normalised again from x.
extern "C" __global__ void __launch_bounds__(256) qkv_heads(
    const TX* __restrict__ x, const TN* __restrict__ q_g, const TN* __restrict__ q_b, const TN* __restrict__ k_g,
    const TN* __restrict__ k_b, const TT* __restrict__ cos, const TT* __restrict__ sin, TY* __restrict__ q,
    TY* __restrict__ k, TY* __restrict__ v, const Heads s, const i64 count)
{
    const int lane = threadIdx.x % 32;
    for (i64 at = (i64)blockIdx.x * 8 + threadIdx.x / 32; at < count; at += (i64)gridDim.x * 8) {
        const int head = (int)(at % s.heads);
        const int which = (int)(at / s.heads % 3);
        const i64 row = at / (3 * s.heads);
        const i64 image = row / s.n, token = row % s.n;
        const TX* own = x + (row * 3 + which) * s.heads * s.d + (i64)head * s.d;
        const TN *g = which ? k_g : q_g, *b = which ? k_b : q_b;
        const bool norm = NORM && which < 2;
        float mean = 0.f, scale = 1.f;
        if (norm) {
            float sum = 0.f, squares = 0.f;
            for (int c = lane; c < s.d; c += 32) sum += load(own + c);
            mean = warp_sum(sum) / s.d;
            for (int c = lane; c < s.d; c += 32) squares += (load(own + c) - mean) * (load(own + c) - mean);
            scale = 1.f / sqrtf(warp_sum(squares) / s.d + s.eps);
        }
        const i64 t = image * s.table[0] + head * s.table[1] + token * s.table[2];
        TY* out = (which == 0 ? q : which == 1 ? k : v) + ((image * s.heads + head) * s.n + token) * s.d;
        for (int c = lane; c < s.d; c += 32) {
            float y = load(own + c);
            if (norm) y = (y - mean) * scale * load(g + c) + load(b + c);
            if (ROPE && which < 2) {
                const bool lower = c % (2 * s.half) < s.half;
                const int partner = lower ? c + s.half : c - s.half;
                float other = load(own + partner);
                if (norm) other = (other - mean) * scale * load(g + partner) + load(b + partner);
                y = y * load(cos + t + c) + (lower ? -other : other) * load(sin + t + c);
            }
            store(out + c, y);
        }
    }
}
#endif
