// dw = g * columns of x over images of 16-bit elements in planes or pixels, any geometry, on the tensor cores of every
// architecture, with f32 sums; see weight_grad.cuh. Both sides of a slice are stored [pixels][neighbours], panels of 64
// neighbours, and turned on the way to registers.
//
// Macros: TX the elements of x and g, bf16_t or half_t, TY of the sums; PIXELS, KERNEL_H, KERNEL_W as convolution.cuh
// says; ALIGNED 1 where with PIXELS the channels of pixels of x and g are whole chunks of 16 bytes; TILE_M x TILE_N the
// tile of a block, multiples of 64.
#include "mma.cuh"
#include "weight_grad.cuh"

const u32 DEPTH = 64, STAGES = 3, WARPS_M = 2, WARPS_N = 4, THREADS = 32 * WARPS_M * WARPS_N;
const u32 BYTES_G = TILE_M * DEPTH * 2, BYTES_X = TILE_N * DEPTH * 2;
const u32 WARP_M = TILE_M / WARPS_M, WARP_N = TILE_N / WARPS_N;

// Where eight neighbours of a pixel are.
DEVICE u32 chunk_at(u32 pixel, u32 chunk) { return chunk / 8 * (DEPTH * 128) + swizzle_128(pixel, chunk % 8); }

// A slice of single elements: element(pixel, i) is the neighbour i of a pixel. Neighbours in memory go to neighbouring
// threads: channels of pixels, pixels of planes.
template <u32 CHUNKS, class Element>
DEVICE void fill(u32 to, u32 first, const Tile& tile, const Convolution& c, Element element) {
#pragma unroll 1
    for (u32 at = threadIdx.x; at < DEPTH * CHUNKS; at += THREADS) {
        const u32 row = PIXELS ? at / CHUNKS : at % DEPTH, chunk = PIXELS ? at % CHUNKS : at / DEPTH;
        u32 words[4] = {};
        if (first + row < tile.end_pixel) {
            const Pixel pixel = pixel_of(first + row, c);
#pragma unroll
            for (u32 i = 0; i < 8; i++) words[i / 2] |= element(pixel, chunk * 8 + i) << (16 * (i % 2));
        }
        store_chunk(to + chunk_at(row, chunk), words);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) conv2d_weight_grad_mma(
    const TX* __restrict__ x, const TX* __restrict__ g, TY* __restrict__ y, const Convolution c, const Pixels pixels)
{
    wait_for_launch_before();
    extern __shared__ __align__(1024) u8 shared[];
    const u32 slices_g = shared_address(shared), slices_x = slices_g + STAGES * BYTES_G;
    const Tile tile = tile_of(blockIdx.x, TILE_M, TILE_N, c, pixels);

    auto fetch = [&](u32 slice) {
        const u32 first = tile.first_pixel + slice * DEPTH;
        const u32 to_g = slices_g + slice % STAGES * BYTES_G, to_x = slices_x + slice % STAGES * BYTES_X;
#if ALIGNED
        // A thread copies the same channels of several pixels.
#pragma unroll
        for (u32 at = threadIdx.x; at < DEPTH * TILE_M / 8; at += THREADS) {
            const u32 row = at / (TILE_M / 8), chunk = at % (TILE_M / 8), output = tile.first_output + chunk * 8;
            const bool there = first + row < tile.end_pixel && output < c.outputs;
            const i64 from = (i64)(first + row) * (c.outputs * c.groups) + tile.group * c.outputs + output;
            copy_chunk(to_g + chunk_at(row, chunk), g + (there ? from : 0), there);
        }
        const u32 chunk = threadIdx.x % (TILE_N / 8), k = tile.first_k + chunk * 8;
        const Tap tap = tap_of(k, c);
#pragma unroll
        for (u32 row = threadIdx.x / (TILE_N / 8); row < DEPTH; row += THREADS / (TILE_N / 8)) {
            const Pixel pixel = pixel_of(first + row, c);
            const Place place = place_of(window_of(pixel.at, c), tap, c);
            const bool there = first + row < tile.end_pixel && k < c.depth && place.inside;
            const i64 from = image_at(pixel.image, tile.group, c) + place.at;
            copy_chunk(to_x + chunk_at(row, chunk), x + (there ? from : 0), there);
        }
#else
        fill<TILE_M / 8>(to_g, first, tile, c, [&](const Pixel& pixel, u32 i) {
            const u32 output = tile.first_output + i;
            return output < c.outputs ? (u32)g[cotangent_at(pixel, tile.group, output, c)].bits : 0u;
        });
        fill<TILE_N / 8>(to_x, first, tile, c, [&](const Pixel& pixel, u32 i) {
            const u32 k = tile.first_k + i;
            const TX* image = x + image_at(pixel.image, tile.group, c);
            return k < c.depth ? (u32)column_at(image, window_of(pixel.at, c), tap_of(k, c), c).bits : 0u;
        });
#endif
        copies_commit();
    };

    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 warp_m = warp / WARPS_N * WARP_M, warp_n = warp % WARPS_N * WARP_N;
    float sums[WARP_M / 16][WARP_N / 8][4] = {};
    const u32 slices = (tile.end_pixel - tile.first_pixel + DEPTH - 1) / DEPTH;
    staged<STAGES - 1>(slices, fetch, [&](u32 slice) {
        const u32 from_g = slices_g + slice % STAGES * BYTES_G, from_x = slices_x + slice % STAGES * BYTES_X;
#pragma unroll
        for (u32 step = 0; step < DEPTH / 16; step++) {
            u32 left[WARP_M / 16][4], right[WARP_N / 16][4];
#pragma unroll
            for (u32 i = 0; i < WARP_M / 16; i++)
                load_matrices_transposed(left[i],
                    from_g + chunk_at(step * 16 + lane / 16 * 8 + lane % 8, (warp_m + i * 16) / 8 + lane / 8 % 2));
#pragma unroll
            for (u32 j = 0; j < WARP_N / 16; j++)
                load_matrices_transposed(
                    right[j], from_x + chunk_at(step * 16 + lane % 16, (warp_n + j * 16) / 8 + lane / 16));
            multiply<TX>(sums, left, right);
        }
    });
#pragma unroll
    for (u32 i = 0; i < WARP_M / 16; i++)
#pragma unroll
        for (u32 j = 0; j < WARP_N / 8; j++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                const u32 output = tile.first_output + warp_m + i * 16 + e / 2 * 8 + lane / 4;
                const u32 k = tile.first_k + warp_n + j * 8 + lane % 4 * 2 + e % 2;
                if (output < c.outputs && k < c.depth) store(y + sum_at(tile, output, k, c), sums[i][j][e]);
            }
}
