// Tiles of products in f32 arithmetic by fused multiply-add: slices of both sides lie in shared memory as
// [depth][neighbours], rows padded by 4 so that neither rows nor columns of a tile share a bank.
#pragma once
#include "types.cuh"

// The rows or columns of a thread: groups of 4 neighbours, as far apart as 16 bytes times the threads along them, so that
// neighbouring threads read neighbouring 16 bytes.
template <u32 COUNT, u32 SIDE> DEVICE u32 spread(u32 thread, u32 i) {
    const u32 width = COUNT < 4 ? COUNT : 4;
    return i / width * (SIDE / (COUNT / width)) + thread * width + i % width;
}

// Adds the product of a slice to the sums of the thread `down` and `across` a tile.
template <u32 R, u32 C, u32 D, u32 M, u32 N>
DEVICE void add_slice(
    float (&sums)[R][C], const float (&left)[D][M], const float (&right)[D][N], u32 down, u32 across)
{
#pragma unroll
    for (u32 k = 0; k < D; k++) {
        float rows[R], columns[C];
#pragma unroll
        for (u32 i = 0; i < R; i++) rows[i] = left[k][spread<R, M - 4>(down, i)];
#pragma unroll
        for (u32 j = 0; j < C; j++) columns[j] = right[k][spread<C, N - 4>(across, j)];
#pragma unroll
        for (u32 i = 0; i < R; i++)
#pragma unroll
            for (u32 j = 0; j < C; j++) sums[i][j] = fmaf(rows[i], columns[j], sums[i][j]);
    }
}

// Slices of SLICE from `first` to `end`, by turns in two halves of shared memory: fetch(at) reads one to registers while
// add(half) multiplies the one in front, put(half) stores it.
template <u32 SLICE, class Fetch, class Put, class Add>
DEVICE void by_turns(u32 first, u32 end, Fetch fetch, Put put, Add add) {
    fetch(first);
    put(0);
    __syncthreads();
    for (u32 half = 0; first < end; first += SLICE, half ^= 1) {
        const bool more = first + SLICE < end;
        if (more) fetch(first + SLICE);
        add(half);
        if (more) put(half ^ 1);
        __syncthreads();
    }
}

// Adds dot products of rows in shared memory, `length` of every `stride` elements. Rows of a thread follow one another on
// the left and lie sixteen apart on the right.
template <u32 R, u32 C>
DEVICE void add_dots(float (&sums)[R][C], const float* left, const float* right, u32 stride, u32 length) {
    for (u32 k = 0; k < length; k++) {
        float rows[R], columns[C];
#pragma unroll
        for (u32 i = 0; i < R; i++) rows[i] = left[i * stride + k];
#pragma unroll
        for (u32 j = 0; j < C; j++) columns[j] = right[16 * j * stride + k];
#pragma unroll
        for (u32 i = 0; i < R; i++)
#pragma unroll
            for (u32 j = 0; j < C; j++) sums[i][j] = fmaf(rows[i], columns[j], sums[i][j]);
    }
}
