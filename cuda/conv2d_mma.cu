// y = act(x * w + b) + residual over images of 16-bit elements in planes or pixels, or of e4m3 codes in pixels, any
// geometry, on the tensor cores of every architecture: a product of weights and columns that are gathered on the way to
// shared memory, with f32 sums. One tile of output channels x pixels a block. Columns of planes are stored
// [depth][pixels]; those of pixels [pixels][depth], 16 bytes of channels a copy.
//
// Macros: TX the elements of x and w, bf16_t, half_t, or e4m3_t; TY, TBIAS, TRESIDUAL, ACTIVATION as epilogue.cuh says,
// XSCALE and WSCALE too, a row being an image and a column an output channel; PIXELS, KERNEL_H, KERNEL_W as
// convolution.cuh says; ALIGNED 1 where rows of weights, and with PIXELS the channels of a pixel, are whole chunks of 16
// bytes, as for codes they must be; TILE_M x TILE_N the tile of a block, WARPS_M x WARPS_N its warps.
#include "convolution.cuh"
#include "epilogue.cuh"
#include "mma.cuh"

const u32 CHUNK = 16 / sizeof(TX), DEPTH = 8 * CHUNK, STAGES = 3, THREADS = 32 * WARPS_M * WARPS_N;
const u32 BYTES_W = TILE_M * 128, BYTES_X = TILE_N * 128;
const u32 WARP_M = TILE_M / WARPS_M, WARP_N = TILE_N / WARPS_N;
static_assert(THREADS % (TILE_N / 8) == 0, "a thread gathers for eight pixels");
static_assert(sizeof(TX) == 2 || (PIXELS && ALIGNED), "codes are copied by whole chunks");

extern "C" __global__ void __launch_bounds__(THREADS, 1) conv2d_mma(
    const TX* __restrict__ x, const TX* __restrict__ w, TY* __restrict__ y, const float* __restrict__ x_scales,
    const float* __restrict__ w_scales, const TBIAS* __restrict__ bias, const TRESIDUAL* __restrict__ residual,
    const Convolution c)
{
    wait_for_launch_before();
    extern __shared__ __align__(1024) u8 shared[];
    const u32 slices_w = shared_address(shared), slices_x = slices_w + STAGES * BYTES_W;
    const Part part = part_of(blockIdx.x, TILE_M, TILE_N, c);
    const u32 pixels = c.out_height * c.out_width;
    x += part.x;
    w += part.w;

    // The pixels of this thread: neighbours, or THREADS / 8 apart. Windows of those behind the last lie outside of the
    // image.
    const u32 eight = threadIdx.x % (TILE_N / 8), OWN = PIXELS && ALIGNED ? TILE_N * 8 / THREADS : 8;
    Window windows[OWN];
#pragma unroll
    for (u32 i = 0; i < OWN; i++) {
        const u32 pixel = part.first_pixel
            + (PIXELS && ALIGNED ? threadIdx.x / 8 + i * (THREADS / 8) : eight * 8 + i);
        windows[i] = window_of(pixel, c);
        if (pixel >= pixels) windows[i].y = -(1 << 30);
    }

    auto fetch = [&](u32 slice) {
        const u32 first_k = slice * DEPTH;
        const u32 to_w = slices_w + slice % STAGES * BYTES_W, to_x = slices_x + slice % STAGES * BYTES_X;
#pragma unroll
        for (u32 at = threadIdx.x; at < TILE_M * 8; at += THREADS) {
            const u32 row = at / 8, k = first_k + at % 8 * CHUNK;
            const bool there = part.first_output + row < c.outputs && k < c.depth;
            const TX* from = w + (there ? (i64)(part.first_output + row) * c.depth + k : 0);
            if (ALIGNED) {
                copy_chunk(to_w + swizzle_128(row, at % 8), from, there);
            } else {
                u32 words[4] = {};
#pragma unroll
                for (u32 i = 0; i < 8; i++)
                    if (there && k + i < c.depth) words[i / 2] |= (u32)from[i].bits << (16 * (i % 2));
                store_chunk(to_w + swizzle_128(row, at % 8), words);
            }
        }
#if PIXELS && ALIGNED
        // A thread copies the same channels of several pixels.
        const u32 k = first_k + threadIdx.x % 8 * CHUNK;
        const Tap tap = tap_of(k, c);
#pragma unroll
        for (u32 row = threadIdx.x / 8, i = 0; i < TILE_N * 8 / THREADS; row += THREADS / 8, i++) {
            const Place place = place_of(windows[i], tap, c);
            const bool there = place.inside && k < c.depth;
            copy_chunk(to_x + swizzle_128(row, threadIdx.x % 8), x + (there ? place.at : 0), there);
        }
#else
        // Panels of 64 pixels, a row of the columns each 128 bytes.
#pragma unroll
        for (u32 row = threadIdx.x / (TILE_N / 8); row < DEPTH; row += THREADS / (TILE_N / 8)) {
            u32 words[4] = {};
            if (first_k + row < c.depth) {
                const Tap tap = tap_of(first_k + row, c);
#pragma unroll
                for (u32 i = 0; i < 8; i++)
                    words[i / 2] |= (u32)column_at(x, windows[i], tap, c).bits << (16 * (i % 2));
            }
            store_chunk(to_x + eight / 8 * (DEPTH * 128) + swizzle_128(row, eight % 8), words);
        }
#endif
        copies_commit();
    };

    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 warp_m = warp / WARPS_N * WARP_M, warp_n = warp % WARPS_N * WARP_N;
    float sums[WARP_M / 16][WARP_N / 8][4] = {};
    const u32 slices = (c.depth + DEPTH - 1) / DEPTH;
    staged<STAGES - 1>(slices, fetch, [&](u32 slice) {
        const u32 from_w = slices_w + slice % STAGES * BYTES_W, from_x = slices_x + slice % STAGES * BYTES_X;
#pragma unroll
        for (u32 step = 0; step < 4; step++) {
            u32 left[WARP_M / 16][4], right[WARP_N / 16][4];
#pragma unroll
            for (u32 i = 0; i < WARP_M / 16; i++)
                load_matrices(left[i], from_w + swizzle_128(warp_m + i * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
            for (u32 j = 0; j < WARP_N / 16; j++) {
#if PIXELS && ALIGNED
                const u32 pixel = warp_n + j * 16 + lane / 16 * 8 + lane % 8;
                load_matrices(right[j], from_x + swizzle_128(pixel, step * 2 + lane / 8 % 2));
#else
                const u32 row = step * 16 + lane % 16, column = (warp_n + j * 16) / 8 + lane / 16;
                load_matrices_transposed(right[j], from_x + column / 8 * (DEPTH * 128) + swizzle_128(row, column % 8));
#endif
            }
            multiply<TX>(sums, left, right);
        }
    });

    const Epilogue epilogue{x_scales, w_scales, bias, residual};
#pragma unroll
    for (u32 i = 0; i < WARP_M / 16; i++)
#pragma unroll
        for (u32 j = 0; j < WARP_N / 8; j++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                const u32 output = part.first_output + warp_m + i * 16 + e / 2 * 8 + lane / 4;
                const u32 pixel = part.first_pixel + warp_n + j * 8 + lane % 4 * 2 + e % 2;
                if (output < c.outputs && pixel < pixels) {
                    const i64 at = result_at(part, output, pixel, c);
                    store(y + at, epilogue.of(sums[i][j][e], part.image, part.group * c.outputs + output, at));
                }
            }
}
