// Where rows of results lie, of every head of every image: [B, H, N, E], or [B, N, H * E]; and how the lanes that hold
// pieces of a row write it.
#pragma once
#include "pairs.cuh"

// Elements from one image, head and token to the next; heads an image.
struct Rows { i64 image, head, token; u32 heads; };

// Row `token` of head `head` of all B * H.
DEVICE i64 row_at(const Rows& rows, u32 head, u32 token) {
    const u32 image = head / rows.heads;
    return image * rows.image + (head - image * rows.heads) * rows.head + token * rows.token;
}

// Words of four lanes side by side, transposed: lane i gets word i of each.
DEVICE void transpose_words(u32 (&words)[4]) {
#pragma unroll
    for (u32 step = 1; step < 4; step *= 2) {
        const bool upper = threadIdx.x & step;
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 &low = words[step == 1 ? 2 * i : i], &high = words[step == 1 ? 2 * i + 1 : i + 2];
            const u32 got = __shfl_xor_sync(~0u, upper ? low : high, step);
            if (upper) low = got;
            else high = got;
        }
    }
}

// Writes a row of SPAN sums of warps' products, four of every eight columns a lane, times a factor: row g, or with `row` 1
// g + 8, of lane 4g + t, whose `to` is 8t elements behind the beginning. All lanes call it.
template <u32 SPAN, class T> DEVICE void store_sums(T* to, const float* sums, u32 row, float factor, bool is_there) {
#pragma unroll
    for (u32 part = 0; part < SPAN / 32; part++) {
        u32 words[4];
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const float* two = sums + 16 * part + 4 * j + 2 * row;
            words[j] = Pair<T>::of(two[0] * factor, two[1] * factor);
        }
        transpose_words(words);
        if (is_there) *(uint4*)(to + part * 32) = {words[0], words[1], words[2], words[3]};
    }
}
