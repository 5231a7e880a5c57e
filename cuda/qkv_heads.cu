// q, k, v [B, heads, N, D] of a joint projection x [B, N, 3·heads·D]: QK norm, rotary positions, rounded once.
//
// Macros: TX, TN, TT, TY the elements of x, of the norms' g and b, of the tables, of the results; NORM and ROPE 0 or 1;
// LANES threads a head, each with 8 neighbouring columns (LANES = D/8, a power of two up to 32, and half a rotated
// segment is a multiple of 8), or 0 for any D: then a warp takes a head, and a lane every 32nd column; HEAD_TABLES 1
// where every head has tables of its own.
#include "vectors.cuh"

// Sizes; `table` is how far the tables move with the image, the head and the token.
struct Heads { i32 heads, n, d, half; float eps; i64 table[3]; };

#if LANES
// A token a warp: LANES lanes take a head and the warp neighbouring heads, which lie side by side in x, one step after
// the other; what all heads of a token share is loaded once.
extern "C" __global__ void __launch_bounds__(256, 2) qkv_heads(
    const TX* __restrict__ x, const TN* __restrict__ q_g, const TN* __restrict__ q_b, const TN* __restrict__ k_g,
    const TN* __restrict__ k_b, const TT* __restrict__ cos, const TT* __restrict__ sin, TY* __restrict__ q,
    TY* __restrict__ k, TY* __restrict__ v, const Heads s, const i64 tokens)
{
    wait_for_launch_before();
    const i64 row = (i64)blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= tokens) return;
    const i64 image = row / s.n, token = row % s.n;
    const int lane = threadIdx.x % 32, column = lane % LANES * 8, first = lane / LANES, step = 32 / LANES;
    const TX* from = x + row * 3 * s.heads * s.d + column;
    const i64 to = (image * s.heads * s.n + token) * s.d + column, next = (i64)s.n * s.d;

    float c[8], d[8];
    auto turn = [&](int head) {
        const i64 t = image * s.table[0] + head * s.table[1] + token * s.table[2] + column;
        load_neighbours(c, cos + t);
        load_neighbours(d, sin + t);
    };
    if (ROPE && !HEAD_TABLES) turn(0);
    const bool lower = column % (2 * s.half) < s.half;
#pragma unroll
    for (int which = 0; which < 3; which++) {
        const bool norm = NORM && which < 2, rope = ROPE && which < 2;
        float g[8], b[8];
        if (norm) {
            load_neighbours(g, (which ? k_g : q_g) + column);
            load_neighbours(b, (which ? k_b : q_b) + column);
        }
        TY* out = (which == 0 ? q : which == 1 ? k : v) + to;
        // All lanes take part in sums and exchanges; those without a head of their own compute the last one again.
#pragma unroll 4
        for (int base = 0; base < s.heads; base += step) {
            const int own = base + first, head = min(own, s.heads - 1);
            float y[8];
            load_neighbours(y, from + (which * s.heads + head) * s.d);
            if (norm) {
                float sum = 0.f, squares = 0.f;
#pragma unroll
                for (int i = 0; i < 8; i++) sum += y[i];
                const float mean = lanes_sum<LANES>(sum) / s.d;
#pragma unroll
                for (int i = 0; i < 8; i++) squares += (y[i] - mean) * (y[i] - mean);
                const float scale = 1.f / sqrtf(lanes_sum<LANES>(squares) / s.d + s.eps);
#pragma unroll
                for (int i = 0; i < 8; i++) y[i] = (y[i] - mean) * scale * g[i] + b[i];
            }
            if (rope) {
                if (HEAD_TABLES) turn(head);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const float other = __shfl_xor_sync(~0u, y[i], s.half / 8);
                    y[i] = y[i] * c[i] + (lower ? -other : other) * d[i];
                }
            }
            if (own < s.heads) store_neighbours(out + own * next, y);
        }
    }
}
#else
// A head a warp; what a rotation needs of other columns is normalised again from x.
extern "C" __global__ void __launch_bounds__(256) qkv_heads(
    const TX* __restrict__ x, const TN* __restrict__ q_g, const TN* __restrict__ q_b, const TN* __restrict__ k_g,
    const TN* __restrict__ k_b, const TT* __restrict__ cos, const TT* __restrict__ sin, TY* __restrict__ q,
    TY* __restrict__ k, TY* __restrict__ v, const Heads s, const i64 count)
{
    wait_for_launch_before();
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
