// dw = g * columns of x over images in planes or pixels, any geometry, in f32 arithmetic; see weight_grad.cuh. Columns
// are gathered while they are read. A tile of 64 outputs x 64 of the depth a block.
//
// Macros: TX the elements of x and g, TY of the sums; PIXELS, KERNEL_H, KERNEL_W as convolution.cuh says.
#include "tiles.cuh"
#include "weight_grad.cuh"

const u32 TILE = 64, SLICE = 16, THREADS = 256, LOADS = TILE * SLICE / THREADS;

extern "C" __global__ void __launch_bounds__(THREADS) conv2d_weight_grad(
    const TX* __restrict__ x, const TX* __restrict__ g, TY* __restrict__ y, const Convolution c, const Pixels pixels)
{
    wait_for_launch_before();
    __shared__ __align__(16) float left[2][SLICE][TILE + 4];
    __shared__ __align__(16) float right[2][SLICE][TILE + 4];
    const Tile tile = tile_of(blockIdx.x, TILE, TILE, c, pixels);
    // Neighbours in memory go to neighbouring threads: channels of pixels, pixels of planes.
    auto row_of = [](u32 i) { return (PIXELS ? (i * THREADS + threadIdx.x) / TILE : threadIdx.x % SLICE); };
    auto column_of = [](u32 i) { return (PIXELS ? threadIdx.x % TILE : (i * THREADS + threadIdx.x) / SLICE); };
    float next_left[LOADS], next_right[LOADS];
    auto fetch = [&](u32 first) {
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
            const u32 number = first + row_of(i), output = tile.first_output + column_of(i);
            const u32 k = tile.first_k + column_of(i);
            next_left[i] = next_right[i] = 0.f;
            if (number >= tile.end_pixel) continue;
            const Pixel pixel = pixel_of(number, c);
            if (output < c.outputs) next_left[i] = load(g + cotangent_at(pixel, tile.group, output, c));
            if (k < c.depth) {
                const TX* image = x + image_at(pixel.image, tile.group, c);
                next_right[i] = widen(column_at(image, window_of(pixel.at, c), tap_of(k, c), c));
            }
        }
    };
    auto put = [&](u32 half) {
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
            left[half][row_of(i)][column_of(i)] = next_left[i];
            right[half][row_of(i)][column_of(i)] = next_right[i];
        }
    };

    const u32 down = threadIdx.x / 16, across = threadIdx.x % 16;
    float sums[4][4] = {};
    by_turns<SLICE>(tile.first_pixel, tile.end_pixel, fetch, put,
        [&](u32 half) { add_slice(sums, left[half], right[half], down, across); });
#pragma unroll
    for (u32 r = 0; r < 4; r++)
#pragma unroll
        for (u32 s = 0; s < 4; s++) {
            const u32 output = tile.first_output + down * 4 + r, k = tile.first_k + across * 4 + s;
            if (output < c.outputs && k < c.depth) store(y + sum_at(tile, output, k, c), sums[r][s]);
        }
}
