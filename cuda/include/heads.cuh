// Heads of a joint projection in the sums of a warpgroup, [64 rows, columns of q, k and v] as wgmma.cuh says it: QK norm,
// rotary positions, and panels of 64 tokens to q, k and v [images, heads, tokens, HEAD].
//
// Macros: HEAD the columns of a head; NORM 0 or 1; HALF_TURN half a rotated segment, a multiple of 8, or 0 for no rotation;
// TN, TT the elements of the norms' g and b and of the tables.
#pragma once
#include "pairs.cuh"
#include "sm90.cuh"

// Sizes; `table` is how far the tables move with the image and the token.
struct Heads { u32 heads, tokens; float eps; u32 unused; i64 table[2]; };

// g and b of q, then of k, in shared memory.
const u32 AFFINE = NORM ? 4 * HEAD : 0;

// Both rows of a thread in one head: (x - mean) / sqrt(variance + eps) * g + b, with g and b side by side.
DEVICE void normalise_head(float* d, const float* affine, float eps) {
    float scale[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float sum = 0.f, squares = 0.f;
#pragma unroll
        for (u32 i = 2 * half; i < HEAD / 2; i += 4) sum += d[i] + d[i + 1];
        const float mean = lanes_sum<4>(sum) * (1.f / HEAD);
#pragma unroll
        for (u32 i = 2 * half; i < HEAD / 2; i += 4) {
            d[i] -= mean, d[i + 1] -= mean;
            squares = fmaf(d[i], d[i], fmaf(d[i + 1], d[i + 1], squares));
        }
        scale[half] = rsqrtf(fmaf(lanes_sum<4>(squares), 1.f / HEAD, eps));
    }
#pragma unroll
    for (u32 i = 0; i < HEAD / 2; i += 4) {
        const float2 g = load_pair(affine + i * 2 + threadIdx.x % 4 * 2);
        const float2 b = load_pair(affine + HEAD + i * 2 + threadIdx.x % 4 * 2);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            d[i + 2 * half] = fmaf(d[i + 2 * half] * scale[half], g.x, b.x);
            d[i + 2 * half + 1] = fmaf(d[i + 2 * half + 1] * scale[half], g.y, b.y);
        }
    }
}

#if HALF_TURN
// What turns eight columns and their partners: tables at both, for both rows of a thread.
struct Turn {
    float2 cos[2][2], sin[2][2];

    __device__ __forceinline__ void load(const TT* const (&c)[2], const TT* const (&s)[2], u32 column) {
#pragma unroll
        for (u32 upper = 0; upper < 2; upper++)
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                cos[upper][half] = load_pair(c[half] + column + upper * HALF_TURN);
                sin[upper][half] = load_pair(s[half] + column + upper * HALF_TURN);
            }
    }
    __device__ __forceinline__ void apply(float* d) const {
        float* e = d + HALF_TURN / 2;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const float2 low = {d[2 * half], d[2 * half + 1]}, high = {e[2 * half], e[2 * half + 1]};
            d[2 * half] = fmaf(low.x, cos[0][half].x, -high.x * sin[0][half].x);
            d[2 * half + 1] = fmaf(low.y, cos[0][half].y, -high.y * sin[0][half].y);
            e[2 * half] = fmaf(high.x, cos[1][half].x, low.x * sin[1][half].x);
            e[2 * half + 1] = fmaf(high.y, cos[1][half].y, low.y * sin[1][half].y);
        }
    }
};
// Where the i-th eight columns that are turned begin: the lower halves of all segments.
DEVICE constexpr u32 turned(u32 i) { return i * 8 / HALF_TURN * 2 * HALF_TURN + i * 8 % HALF_TURN; }
#endif

// The heads from column `first` on, whole ones, of rows `row` and `row + 8`. v stays as it is.
template <u32 COUNT> DEVICE void finish_heads(
    float (&d)[COUNT], u32 first, u32 row, u32 rows, const float* affine, const TT* cos, const TT* sin, const Heads& s)
{
    const u32 head = first / HEAD;
    if (head >= 2 * s.heads) return;
#if HALF_TURN
    const TT *cosines[2], *sines[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 own = min(row + half * 8, rows - 1), image = own / s.tokens;
        const i64 at = image * s.table[0] + (own - image * s.tokens) * s.table[1] + threadIdx.x % 4 * 2;
        cosines[half] = cos + at, sines[half] = sin + at;
    }
    // What comes next is on its way while columns are turned.
    Turn turns[2];
    turns[0].load(cosines, sines, turned(0));
    turns[1].load(cosines, sines, turned(1));
#endif
#pragma unroll
    for (u32 h = 0; h < COUNT * 2 / HEAD; h++)
        if (NORM && head + h < 2 * s.heads)
            normalise_head(d + h * (HEAD / 2), affine + (head + h < s.heads ? 0 : 2 * HEAD), s.eps);
#if HALF_TURN
#pragma unroll
    for (u32 i = 0; i < HEAD / 16; i++) {
#pragma unroll
        for (u32 h = 0; h < COUNT * 2 / HEAD; h++)
            if (head + h < 2 * s.heads) turns[i % 2].apply(d + h * (HEAD / 2) + turned(i) / 2);
        if (i + 2 < HEAD / 16) turns[i % 2].load(cosines, sines, turned(i + 2));
    }
#endif
}

// q, k and v: maps by panels of 64 tokens, and memory.
struct Parts { const TensorMap* maps[3]; TY* memory[3]; };

// A panel, 64 rows and 64 columns of the projection, to the tokens of the image of its first row: one thread's part. The
// copy engine drops what lies behind the last token.
DEVICE void write_tokens(const Parts& to, u32 panel, u32 column, u32 row, const Heads& s) {
    const u32 head = column / HEAD, part = head / s.heads, image = row / s.tokens;
    const TensorMap* map = part == 0 ? to.maps[0] : part == 1 ? to.maps[1] : to.maps[2];
    write_box(map, panel, column % HEAD, row - image * s.tokens, head - part * s.heads, image);
}

// And to the images behind, by all threads of the warpgroup: the copy engine takes no box that begins before a tensor.
DEVICE void write_other_images(const Parts& to, const u8* panel, u32 column, u32 row, u32 rows, const Heads& s) {
    const u32 head = column / HEAD, part = head / s.heads, end = min(row + 64, rows);
    TY* memory = (part == 0 ? to.memory[0] : part == 1 ? to.memory[1] : to.memory[2]) + column % HEAD;
    const u32 next = (row / s.tokens + 1) * s.tokens;
    for (u32 i = threadIdx.x % 128; next < end && i < 64 * 8; i += 128) {
        const u32 own = row + i / 8, image = own / s.tokens, chunk = i % 8;
        if (own < next || own >= end) continue;
        const i64 at = ((i64)image * s.heads + head - part * s.heads) * s.tokens + own - image * s.tokens;
        *(uint4*)(memory + at * HEAD + chunk * 8) = *(const uint4*)(panel + swizzle_128(i / 8, chunk));
    }
}
