// What centroids add to their scores.
#pragma once
#include "blocks.cuh"

// What a centroid adds to its score before the score is scaled, and the key block that it lies in.
struct Centroid { float bias; u32 block; };

extern "C" __global__ void __launch_bounds__(256) weigh_centroids(
    Centroid* __restrict__ table, const __grid_constant__ Cut key_cut, const __grid_constant__ Cut centroid_cut,
    const u32 centroids, const float scale)
{
    wait_for_launch_before();
    const u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i >= centroids) return;
    const Range range = tokens_of(centroid_cut, i);
    table[i] = {log2f((float)(range.end - range.begin)) / scale, (u32)place_of(key_cut, range.begin).block};
}
