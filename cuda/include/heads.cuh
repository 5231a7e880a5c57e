// Heads of a joint projection in the sums of a warpgroup, [64 rows, columns of q, k and v] as wgmma.cuh says it: QK norm,
// rotary positions, and panels of 64 tokens to q, k and v [images, heads, tokens, HEAD].
//
// Macros: HEAD the columns of a head; NORM 0 or 1; HALF_TURN half a rotated segment, a multiple of 8, or 0 for no
// rotation; TN the elements of the norms' g and b.
#pragma once
#include "pairs.cuh"
#include "sm90.cuh"

// Sizes; `table` is how far the turns move with the image and the token.
struct Heads { u32 heads, tokens; float eps; u32 unused; i64 table[2]; };

// g and b of q, then of k, in shared memory: of a column side by side.
const u32 AFFINE = NORM ? 4 * HEAD : 0;

// What turns a row of a head, two columns in each: their cos and sin in turn.
struct Turns { float4 of[HEAD / 16]; };

// Asked for here and not later: in front of the products that hide how long it takes.
DEVICE void load_turns(Turns& to, const float* turns, u32 row, u32 rows, const Heads& s) {
    const u32 own = min(row, rows - 1), image = own / s.tokens;
    const float* from = turns + image * s.table[0] + (own - image * s.tokens) * s.table[1] + threadIdx.x % 4 * 4;
#pragma unroll
    for (u32 i = 0; i < HEAD / 16; i++)
        asm volatile("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];"
            : "=f"(to.of[i].x), "=f"(to.of[i].y), "=f"(to.of[i].z), "=f"(to.of[i].w) : "l"(from + i * 16));
}

// Both rows of a thread in one head: (x - mean) / sqrt(variance + eps) * g + b.
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
        const float4 own = *(const float4*)(affine + i * 4 + threadIdx.x % 4 * 4);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            d[i + 2 * half] = fmaf(d[i + 2 * half] * scale[half], own.x, own.y);
            d[i + 2 * half + 1] = fmaf(d[i + 2 * half + 1] * scale[half], own.z, own.w);
        }
    }
}

// The lower and the upper half of every segment by the same angles.
DEVICE void turn_head(float* d, const Turns (&turns)[2]) {
#if HALF_TURN
#pragma unroll
    for (u32 i = 0; i < HEAD / 16; i++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float* low = d + (i * 8 / HALF_TURN * 2 * HALF_TURN + i * 8 % HALF_TURN) / 2 + 2 * half;
            float* high = low + HALF_TURN / 2;
            const float4 turn = turns[half].of[i];
            const float x = low[0], y = low[1];
            low[0] = fmaf(x, turn.x, -high[0] * turn.y);
            low[1] = fmaf(y, turn.z, -high[1] * turn.w);
            high[0] = fmaf(high[0], turn.x, x * turn.y);
            high[1] = fmaf(high[1], turn.z, y * turn.w);
        }
#endif
}

// q, k and v: maps by panels of 64 tokens, and memory.
struct Parts { const TensorMap* maps[3]; TY* memory[3]; };

// A panel, 64 rows from `row` on and 64 columns of the projection, to the tokens of `image`, that of its first row: one
// thread's part. The copy engine drops what lies behind the last token.
DEVICE void write_tokens(const Parts& to, u32 panel, u32 column, u32 row, u32 image, const Heads& s) {
    const u32 head = column / HEAD, part = (head >= s.heads) + (head >= 2 * s.heads);
    const TensorMap* map = part == 0 ? to.maps[0] : part == 1 ? to.maps[1] : to.maps[2];
    write_box(map, panel, column % HEAD, row - image * s.tokens, head - part * s.heads, image);
}

// And to the images behind, by all threads of the warpgroup: the copy engine writes no box that begins before a tensor.
DEVICE void write_other_images(
    const Parts& to, const u8* panel, u32 column, u32 row, u32 rows, u32 image, const Heads& s)
{
    const u32 next = (image + 1) * s.tokens, end = min(row + 64, rows);
    if (next >= end) return;
    const u32 head = column / HEAD, part = (head >= s.heads) + (head >= 2 * s.heads);
    TY* memory = (part == 0 ? to.memory[0] : part == 1 ? to.memory[1] : to.memory[2]) + column % HEAD;
    for (u32 i = (next - row) * 8 + threadIdx.x % 128; i < (end - row) * 8; i += 128) {
        const u32 own = row + i / 8, other = own / s.tokens, chunk = i % 8;
        const i64 at = ((i64)other * s.heads + head - part * s.heads) * s.tokens + own - other * s.tokens;
        *(uint4*)(memory + at * HEAD + chunk * 8) = *(const uint4*)(panel + swizzle_128(i / 8, chunk));
    }
}
