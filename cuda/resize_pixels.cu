// y = act(x at another resolution + addends) for images [N, H, W, C] of 16-bit elements, bilinear with corners on
// corners.
//
// Pixel i of a result lies at i (from - 1) / (to - 1): a quotient of integers, so its neighbours are exact and its
// weights rounded once. A thread makes eight channels of ROWS pixels below each other, and blends the columns of a row
// of x once for all of them.
//
// Macros: TX the elements, bf16_t or half_t, of x, addends and y; ADDENDS how many there are; ACTIVATION a function of
// activations.cuh; ROWS; RECTIFIED 1 to give max(y, 0) too.
#include "activations.cuh"
#include "pairs.cuh"

// Chunks of eight channels from one image, row, column of an addend to the next; 0 where it is stretched.
struct Steps { u32 image, row, column; };
struct Sizes { u32 chunks, height, width, result_height, result_width; };

struct Neighbours { u32 first; float weight; };
DEVICE Neighbours neighbours(u32 i, u32 from, u32 to) {
    if (to == 1) return {0, 0.f};
    const u32 at = i * (from - 1), first = at / (to - 1);
    return {first, (float)(at - first * (to - 1)) / (float)(to - 1)};
}

DEVICE void add_chunk(float (&sums)[8], const uint4& chunk, float weight) {
    const u32 words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        sums[2 * i] = fmaf(widen(TX{(u16)words[i]}), weight, sums[2 * i]);
        sums[2 * i + 1] = fmaf(widen(TX{(u16)(words[i] >> 16)}), weight, sums[2 * i + 1]);
    }
}

DEVICE uint4 chunk_of(const float (&x)[8]) {
    return {Pair<TX>::of(x[0], x[1]), Pair<TX>::of(x[2], x[3]), Pair<TX>::of(x[4], x[5]), Pair<TX>::of(x[6], x[7])};
}

extern "C" __global__ void __launch_bounds__(256) resize_pixels(
    const uint4* __restrict__ x, const uint4* __restrict__ a, const uint4* __restrict__ b, uint4* __restrict__ y,
    uint4* __restrict__ rectified, const Sizes s, const Steps of_a, const Steps of_b)
{
    wait_for_launch_before();
    const u32 at = blockIdx.x * 256 + threadIdx.x, j = at / s.chunks, chunk = at - j * s.chunks, image = blockIdx.z;
    if (j >= s.result_width) return;
    const Neighbours across = neighbours(j, s.width, s.result_width);
    const uint4* from = x + ((i64)image * s.height * s.width + across.first) * s.chunks + chunk;
    // A neighbour without weight may lie outside, or not be finite.
    auto blend = [&](u32 row, float (&sums)[8]) {
        const uint4* pixel = from + (i64)row * s.width * s.chunks;
#pragma unroll
        for (u32 k = 0; k < 8; k++) sums[k] = 0.f;
        add_chunk(sums, pixel[0], 1.f - across.weight);
        if (across.weight != 0.f) add_chunk(sums, pixel[s.chunks], across.weight);
    };
    // Rows `held` and held + 1 of x, the latter where it was needed.
    float upper[8], lower[8];
    u32 held = ~0u;
    bool has_lower = false;
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
        const u32 i = blockIdx.y * ROWS + r;
        if (i >= s.result_height) break;
        const Neighbours down = neighbours(i, s.height, s.result_height);
        if (down.first != held) {
            if (has_lower && down.first == held + 1) {
#pragma unroll
                for (u32 k = 0; k < 8; k++) upper[k] = lower[k];
            } else {
                blend(down.first, upper);
            }
            held = down.first;
            has_lower = false;
        }
        float sums[8];
#pragma unroll
        for (u32 k = 0; k < 8; k++) sums[k] = upper[k] * (1.f - down.weight);
        if (down.weight != 0.f) {
            if (!has_lower) blend(held + 1, lower);
            has_lower = true;
#pragma unroll
            for (u32 k = 0; k < 8; k++) sums[k] = fmaf(lower[k], down.weight, sums[k]);
        }
        auto place = [&](const Steps& of) { return (i64)image * of.image + i * of.row + j * of.column + chunk; };
        if (ADDENDS > 0) add_chunk(sums, a[place(of_a)], 1.f);
        if (ADDENDS > 1) add_chunk(sums, b[place(of_b)], 1.f);
#pragma unroll
        for (u32 k = 0; k < 8; k++) sums[k] = ACTIVATION(sums[k]);
        const i64 to = (i64)(image * s.result_height + i) * s.result_width * s.chunks + at;
        y[to] = chunk_of(sums);
        if (RECTIFIED) {
#pragma unroll
            for (u32 k = 0; k < 8; k++) sums[k] = relu(sums[k]);
            rectified[to] = chunk_of(sums);
        }
    }
}
