// y = act(x * w + b) + residual on Hopper's tensor cores: images [N, H, W, C] and weights [O, kh, kw, C] of 16-bit
// elements, or of e4m3 codes with a scale an image and a scale an output channel; one group.
//
// A product of pixels and weights without gathering: what a tap reads of TILE_M pixels of the result, neighbours in
// rows and across rows and images, the copy engine fetches as one column of pixels, shifted by the tap, strides skipped,
// zeros outside of the image. Of the pixels of a tile, each of two warpgroups has 64 * BLOCKS, and all TILE_N output
// channels.
//
// Persistent tiles and one ring of stages. A stage holds 128 bytes of channels of the pixels under a tap, and of the
// weights of that tap. Behind the last slice of a tile, the producer hands over stages for the result: with the residual
// in them, where there is one, which warpgroups overwrite in place and copy out. Meanwhile the next tile is on its way.
//
// Few tiles of long sums are cut into parts, each some of the slices: with PARTIAL, tiles write f32 sums, and
// `conv2d_sum` adds them up in order and does the rest.
//
// Macros: TX the elements of x and w, bf16_t, half_t or e4m3_t; SCALED 1 for codes; TY the elements of residual and y,
// bf16_t or half_t; TBIAS, BIAS, RESIDUAL, ACTIVATION as epilogue.cuh says; TILE_N, BLOCKS, STAGES; PARTIAL; MEASURE 1
// to write the largest magnitudes of y: for each image, the tiles that reach into it, and each warpgroup; RECTIFIED 1 to
// give max(y, 0) too, without a residual.
#include "activations.cuh"
#include "mma.cuh"
#include "sm90.cuh"
#include "vectors.cuh"
#include "wgmma.cuh"

const u32 GROUPS = 2, THREADS = 128 * (GROUPS + 1), TILE_M = 64 * BLOCKS * GROUPS, DEPTH = 128 / sizeof(TX);
const u32 BYTES_X = TILE_M * 128, STAGE = BYTES_X + TILE_N * 128;
// Channels side by side in a panel of the result, panels of a tile, how many a stage has room for, and stages for all.
const u32 WIDTH = TILE_N < 64 ? TILE_N : 64, PANELS = TILE_N / WIDTH, PANEL = TILE_M * WIDTH * 2;
const u32 ROOM = STAGE / PANEL < PANELS ? STAGE / PANEL : PANELS, RESULT_STAGES = (PANELS + ROOM - 1) / ROOM;
static_assert(RESULT_STAGES <= STAGES, "a result fits into the ring");
static_assert(!RESIDUAL || !RECTIFIED, "what lies beside y is a residual or a second result");
// Columns of a tile that a thread of a warpgroup prepares for the others.
const u32 OWN = (TILE_N + 127) / 128;

struct Convolution {
    // Tiles along the channels, parts of a sum, tiles of all pixels, channels and parts.
    u32 along, parts, tiles;
    // Of the result: pixels of all images, columns and rows, channels.
    u32 pixels, width, height, outputs;
    u32 kernel_w, stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x;
    // Slices of DEPTH channels of a tap, and of all taps.
    u32 slices_of_tap, slices;
    // Largest magnitudes that an image has room for.
    u32 measures;
};

struct Tile {
    u32 first_output, part, first_pixel, image;
    // Slices of the sum.
    u32 first, last;
    __device__ __forceinline__ Tile(u32 index, const Convolution& c) {
        first_output = index % c.along * TILE_N;
        index /= c.along;
        part = index % c.parts;
        first_pixel = index / c.parts * TILE_M;
        image = first_pixel / (c.width * c.height);
        first = (u64)c.slices * part / c.parts;
        last = (u64)c.slices * (part + 1) / c.parts;
    }
};

// Where a chunk of eight channels of a pixel lies in a panel.
DEVICE u32 chunk_at(u32 pixel, u32 chunk) { return WIDTH == 64 ? swizzle_128(pixel, chunk) : swizzle_64(pixel, chunk); }

// The larger of two pairs of 16 bits, each by itself.
DEVICE u32 max_pair(u32 a, u32 b) {
    u32 most;
    asm("max.u16x2 %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
    return most;
}

DEVICE void next(u32& stage, u32& phase) {
    if (++stage == STAGES) stage = 0, phase ^= 1;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) conv2d_pixels(
    const __grid_constant__ TensorMap map_x, const __grid_constant__ TensorMap map_w,
    const __grid_constant__ TensorMap map_y, const __grid_constant__ TensorMap map_beside,
    const float* __restrict__ x_scales, const float* __restrict__ w_scales, const TBIAS* __restrict__ bias,
    float* __restrict__ partial, float* __restrict__ largest, const Convolution c)
{
    extern __shared__ __align__(1024) u8 shared[];
    const u32 ring = shared_address(shared), full = ring + STAGES * STAGE, empty = full + 8 * STAGES;
    const u32 warp = warp_index(), group = warpgroup_index(), lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        ring_init(full, empty, STAGES, 4 * GROUPS);
        barrier_init_done();
    }
    __syncthreads();
    wait_for_launch_before();

    if (group == GROUPS) {
        registers_lower<24>();
        if (warp == 4 * GROUPS && elect_one()) {
            u32 stage = 0, phase = 0;
            for (u32 index = blockIdx.x; index < c.tiles; index += gridDim.x) {
                const Tile tile(index, c);
                const i32 x = (i32)(tile.first_pixel % c.width * c.stride_x) - (i32)c.pad_x;
                const i32 y = (i32)(tile.first_pixel / c.width % c.height * c.stride_y) - (i32)c.pad_y;
                u32 tap = tile.first / c.slices_of_tap, slice = tile.first % c.slices_of_tap;
                for (u32 i = tile.first; i < tile.last; i++) {
                    const u32 to = ring + stage * STAGE, done = full + 8 * stage;
                    const u32 right = tap % c.kernel_w * c.dilation_x, down = tap / c.kernel_w * c.dilation_y;
                    barrier_wait(empty + 8 * stage, phase ^ 1);
                    barrier_expect(done, STAGE);
                    copy_pixels(to, &map_x, done, slice * DEPTH, x, y, tile.image, right, down, KEEP_NORMAL);
                    copy_box(to + BYTES_X, &map_w, done, slice * DEPTH, tap, tile.first_output, KEEP_LONG);
                    if (++slice == c.slices_of_tap) slice = 0, tap++;
                    next(stage, phase);
                }
                for (u32 part = 0; !PARTIAL && part < RESULT_STAGES * (1 + RECTIFIED); part++) {
                    const u32 done = full + 8 * stage;
                    barrier_wait(empty + 8 * stage, phase ^ 1);
                    if (RESIDUAL) {
                        const u32 first = part * ROOM, panels = PANELS - first < ROOM ? PANELS - first : ROOM;
                        barrier_expect(done, panels * PANEL);
                        for (u32 i = 0; i < panels; i++)
                            copy_box(ring + stage * STAGE + i * PANEL, &map_beside, done,
                                tile.first_output + (first + i) * WIDTH, tile.first_pixel, KEEP_LITTLE);
                    } else {
                        barrier_arrive(done);
                    }
                    next(stage, phase);
                }
            }
        }
        return;
    }

    registers_raise<240>();
    // Of this warpgroup: scales and biases of columns, largest magnitudes of its warps in two images.
    float* const columns = (float*)(shared + STAGES * (STAGE + 16)) + group * (2 * TILE_N + 8);
    float* const measured = columns + 2 * TILE_N;
    u32 stage = 0, phase = 0;
    for (u32 index = blockIdx.x; index < c.tiles; index += gridDim.x) {
        const Tile tile(index, c);
        const u32 slices = tile.last - tile.first;
        const u32 first_pixel = group * 64 * BLOCKS;
        // The first of this thread's two rows of a block; the other is 8 pixels behind.
        auto row_of = [&](u32 block) { return tile.first_pixel + first_pixel + block * 64 + warp % 4 * 16 + lane / 4; };
        // Read ahead of the products, which hide how long it takes.
        float scale_ahead[OWN], bias_ahead[OWN], x_scale[BLOCKS][2];
#pragma unroll
        for (u32 i = 0; SCALED && !PARTIAL && i < 2 * BLOCKS; i++) {
            const u32 pixel = min(row_of(i / 2) + i % 2 * 8, c.pixels - 1);
            x_scale[i / 2][i % 2] = x_scales[pixel / (c.width * c.height)];
        }
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
            const u32 output = tile.first_output + i * 128 + threadIdx.x % 128;
            const bool there = output < c.outputs && !PARTIAL;
            scale_ahead[i] = SCALED && there ? w_scales[output] : 0.f;
            bias_ahead[i] = BIAS && there ? load(bias + output) : 0.f;
        }
        float sums[BLOCKS][TILE_N / 2];
        for (u32 slice = 0; slice < slices; slice++) {
            barrier_wait(full + 8 * stage, phase);
            const u32 from = ring + stage * STAGE;
            const u64 a = operand_k128(from + group * (64 * BLOCKS * 128)), b = operand_k128(from + BYTES_X);
#pragma unroll
            for (u32 block = 0; block < BLOCKS; block++) pin(sums[block]);
            products_fence();
#pragma unroll
            for (u32 step = 0; step < 4; step++)
#pragma unroll
                for (u32 block = 0; block < BLOCKS; block++)
                    Step<TX>::add(sums[block], a + block * 512 + step * 2, b + step * 2, step != 0 || slice != 0);
            products_commit();
#pragma unroll
            for (u32 block = 0; block < BLOCKS; block++) pin(sums[block]);
            // One slice stays in flight; the one before is free.
            products_wait<1>();
            if (slice > 0 && lane == 0) barrier_arrive(empty + 8 * (stage == 0 ? STAGES - 1 : stage - 1));
            next(stage, phase);
        }
        products_wait<0>();
#pragma unroll
        for (u32 block = 0; block < BLOCKS; block++) pin(sums[block]);
        if (lane == 0) barrier_arrive(empty + 8 * (stage == 0 ? STAGES - 1 : stage - 1));

#if PARTIAL
#pragma unroll
        for (u32 block = 0; block < BLOCKS; block++)
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const u32 pixel = row_of(block) + half * 8;
                float* to = partial + ((u64)tile.part * c.pixels + pixel) * c.outputs + tile.first_output;
#pragma unroll
                for (u32 j = 0; j < TILE_N / 8; j++) {
                    const u32 column = j * 8 + lane % 4 * 2;
                    const float2 both{sums[block][j * 4 + half * 2], sums[block][j * 4 + half * 2 + 1]};
                    if (pixel < c.pixels && tile.first_output + column < c.outputs) *(float2*)(to + column) = both;
                }
            }
#else
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
            const u32 column = i * 128 + threadIdx.x % 128;
            if (SCALED && column < TILE_N) columns[column] = scale_ahead[i];
            if (BIAS && column < TILE_N) columns[TILE_N + column] = bias_ahead[i];
        }
        if (SCALED || BIAS) named_sync(1 + group, 128);
        // Of this thread's rows, the largest magnitudes of even and of odd columns, rounded: their bits are in order.
        u32 most[BLOCKS][2] = {};
#pragma unroll
        for (u32 all = 0; all < RESULT_STAGES * (1 + RECTIFIED); all++) {
            const bool positive = all >= RESULT_STAGES;
            const u32 part = all % RESULT_STAGES, from = ring + stage * STAGE;
            barrier_wait(full + 8 * stage, phase);
#pragma unroll
            for (u32 i = part * ROOM; i < PANELS && i < (part + 1) * ROOM; i++)
#pragma unroll
                for (u32 pair = 0; pair < WIDTH / 16; pair++) {
                    const u32 column = i * WIDTH + pair * 16;
                    float2 times[2], plus[2] = {};
#pragma unroll
                    for (u32 k = 0; k < 2; k++) {
                        const u32 own = column + k * 8 + lane % 4 * 2;
                        if (SCALED) times[k] = *(const float2*)(columns + own);
                        if (BIAS) plus[k] = *(const float2*)(columns + TILE_N + own);
                    }
#pragma unroll
                    for (u32 block = 0; block < BLOCKS; block++) {
                        const u32 pixel = first_pixel + block * 64 + warp % 4 * 16 + lane % 16;
                        const u32 at = from + (i - part * ROOM) * PANEL + chunk_at(pixel, pair * 2 + lane / 16);
                        u32 added[4] = {}, words[4];
                        if (RESIDUAL) load_matrices(added, at);
#pragma unroll
                        for (u32 k = 0; k < 4; k++) {
                            // Matrices: upper and lower pixels of the first eight channels, then of the second.
                            float low = sums[block][column / 2 + k * 2], high = sums[block][column / 2 + k * 2 + 1];
                            if (SCALED) low *= x_scale[block][k % 2] * times[k / 2].x;
                            if (SCALED) high *= x_scale[block][k % 2] * times[k / 2].y;
                            low = ACTIVATION(low + plus[k / 2].x);
                            high = ACTIVATION(high + plus[k / 2].y);
                            if (RESIDUAL) {
                                low += widen(TY{(u16)added[k]});
                                high += widen(TY{(u16)(added[k] >> 16)});
                            }
                            words[k] = positive ? Pair<TY>::of(relu(low), relu(high)) : Pair<TY>::of(low, high);
                            // Weights beyond the outputs are zeros, biases too: an activation leaves those at zero.
                            if (MEASURE) most[block][k % 2] = max_pair(most[block][k % 2], words[k] & 0x7fff7fff);
                        }
                        store_matrices(at, words[0], words[1], words[2], words[3]);
                    }
                }
            if (MEASURE && part == RESULT_STAGES - 1)
#pragma unroll
                for (u32 image = 0; image < 2; image++) {
                    u32 own = 0;
#pragma unroll
                    for (u32 i = 0; i < 2 * BLOCKS; i++) {
                        const u32 pixel = row_of(i / 2) + i % 2 * 8;
                        const bool inside = pixel < c.pixels && pixel / (c.width * c.height) == tile.image + image;
                        if (inside) own = max_pair(own, most[i / 2][i % 2]);
                    }
                    const float top = warp_max(fmaxf(widen(TY{(u16)own}), widen(TY{(u16)(own >> 16)})));
                    if (lane == 0) measured[image * 4 + warp % 4] = top;
                }
            fence_shared_for_async();
            named_sync(1 + group, 128);
            if (warp % 4 == 0) {
                if (elect_one()) {
#pragma unroll
                    for (u32 i = part * ROOM; i < PANELS && i < (part + 1) * ROOM; i++)
                        write_box(positive ? &map_beside : &map_y, from + (i - part * ROOM) * PANEL + first_pixel * WIDTH * 2,
                            tile.first_output + i * WIDTH, tile.first_pixel + first_pixel);
                    writes_commit();
                    writes_wait_read<0>();
                }
                __syncwarp();
            }
            if (lane == 0) barrier_arrive(empty + 8 * stage);
            next(stage, phase);
        }
        if (MEASURE && threadIdx.x % 128 < 2) {
            // A tile is no larger than an image, so that it reaches into two at most.
            const u32 size = c.width * c.height, image = tile.image + threadIdx.x % 128;
            const float* of = measured + threadIdx.x % 128 * 4;
            const u32 behind = tile.first_pixel / TILE_M - image * size / TILE_M;
            const u32 at = (behind * c.along + tile.first_output / TILE_N) * GROUPS + group;
            if (image * size < c.pixels && image * size < tile.first_pixel + TILE_M)
                largest[(u64)image * c.measures + at] = fmaxf(fmaxf(of[0], of[1]), fmaxf(of[2], of[3]));
        }
#endif
    }
    // Shared memory stays until everything has been copied out of it.
    if (warp % 4 == 0) writes_wait<0>();
}

#if PARTIAL
// A thread has eight channels of a pixel.
extern "C" __global__ void __launch_bounds__(256) conv2d_sum(
    const float* __restrict__ partial, const float* __restrict__ x_scales, const float* __restrict__ w_scales,
    const TBIAS* __restrict__ bias, const TY* __restrict__ residual, TY* __restrict__ y, const Convolution c)
{
    wait_for_launch_before();
    const u32 chunks = c.outputs / 8;
    const u64 elements = (u64)c.pixels * c.outputs;
    for (u32 at = blockIdx.x * 256 + threadIdx.x; at < c.pixels * chunks; at += gridDim.x * 256) {
        const u32 pixel = at / chunks, output = at % chunks * 8;
        float sums[8] = {}, plus[8] = {}, times[8], added[8] = {};
        for (u32 part = 0; part < c.parts; part++) {
            float own[8];
            load_neighbours(own, partial + part * elements + (u64)at * 8);
#pragma unroll
            for (u32 i = 0; i < 8; i++) sums[i] += own[i];
        }
        if (BIAS) load_neighbours(plus, bias + output);
        if (SCALED) load_neighbours(times, w_scales + output);
        if (RESIDUAL) load_neighbours(added, residual + (u64)at * 8);
        const float x_scale = SCALED ? x_scales[pixel / (c.width * c.height)] : 1.f;
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            if (SCALED) sums[i] *= x_scale * times[i];
            sums[i] = ACTIVATION(sums[i] + plus[i]);
            if (RESIDUAL) sums[i] += added[i];
        }
        store_neighbours(y + (u64)at * 8, sums);
    }
}
#endif
