// y = act(x * w + b) + residual on Hopper's tensor cores: images [N, H, W, C] and weights [O, kh, kw, C] of 16-bit
// elements, one group.
//
// A product of pixels and weights without gathering: what a tap reads of a tile of TILE_W x TILE_H pixels is a box that
// the copy engine fetches, shifted by the tap, strides skipped, zeros outside of the image. Of the pixels of a tile,
// each of two warpgroups has 64 * BLOCKS, and all TILE_N output channels.
//
// Persistent tiles and one ring of stages. A stage holds 64 channels of the pixels under a tap, and of the weights of
// that tap. Behind the last slice of a tile, the producer hands over stages for the result: with the residual in them,
// where there is one, which warpgroups overwrite in place and copy out. Meanwhile the next tile is on its way.
//
// Macros: TX the elements of x, w, residual and y, bf16_t or half_t; TBIAS, BIAS, RESIDUAL, ACTIVATION as epilogue.cuh
// says; TILE_N, BLOCKS, STAGES.
#include "epilogue.cuh"
#include "mma.cuh"
#include "sm90.cuh"
#include "wgmma.cuh"

const u32 GROUPS = 2, THREADS = 128 * (GROUPS + 1), TILE_M = 64 * BLOCKS * GROUPS;
const u32 BYTES_X = TILE_M * 128, STAGE = BYTES_X + TILE_N * 128;
// Channels side by side in a panel of the result, panels of a tile, how many a stage has room for, and stages for all.
const u32 WIDTH = TILE_N < 64 ? TILE_N : 64, PANELS = TILE_N / WIDTH, PANEL = TILE_M * WIDTH * 2;
const u32 ROOM = STAGE / PANEL < PANELS ? STAGE / PANEL : PANELS, RESULT_STAGES = (PANELS + ROOM - 1) / ROOM;
static_assert(RESULT_STAGES <= STAGES, "a result fits into the ring");

struct Convolution {
    // Columns and rows of tiles, tiles along the channels, of all images.
    u32 across, down, along, tiles;
    // Pixels of a row of a tile, rows of a tile.
    u32 tile_w, tile_h;
    u32 outputs, kernel_h, kernel_w, stride_y, stride_x, dilation_y, dilation_x, pad_y, pad_x;
    // Slices of 64 channels.
    u32 slices;
};

struct Tile {
    u32 first_output, x, y, image;
    __device__ __forceinline__ Tile(u32 index, const Convolution& c) {
        first_output = index % c.along * TILE_N;
        index /= c.along;
        x = index % c.across * c.tile_w;
        index /= c.across;
        y = index % c.down * c.tile_h;
        image = index / c.down;
    }
};

// Where a chunk of eight channels of a pixel lies in a panel.
DEVICE u32 chunk_at(u32 pixel, u32 chunk) { return WIDTH == 64 ? swizzle_128(pixel, chunk) : swizzle_64(pixel, chunk); }

DEVICE void next(u32& stage, u32& phase) {
    if (++stage == STAGES) stage = 0, phase ^= 1;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) conv2d_pixels(
    const __grid_constant__ TensorMap map_x, const __grid_constant__ TensorMap map_w,
    const __grid_constant__ TensorMap map_y, const __grid_constant__ TensorMap map_residual,
    const TBIAS* __restrict__ bias, const Convolution c)
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
                const i32 first_x = (i32)(tile.x * c.stride_x) - (i32)c.pad_x;
                const i32 first_y = (i32)(tile.y * c.stride_y) - (i32)c.pad_y;
                for (u32 ky = 0; ky < c.kernel_h; ky++)
                    for (u32 kx = 0; kx < c.kernel_w; kx++)
                        for (u32 slice = 0; slice < c.slices; slice++) {
                            const u32 to = ring + stage * STAGE, done = full + 8 * stage;
                            barrier_wait(empty + 8 * stage, phase ^ 1);
                            barrier_expect(done, STAGE);
                            copy_box(to, &map_x, done, slice * 64, first_x + kx * c.dilation_x,
                                first_y + ky * c.dilation_y, tile.image, KEEP_NORMAL);
                            copy_box(to + BYTES_X, &map_w, done, slice * 64, ky * c.kernel_w + kx, tile.first_output,
                                KEEP_LONG);
                            next(stage, phase);
                        }
                for (u32 first = 0; first < PANELS; first += ROOM) {
                    const u32 done = full + 8 * stage;
                    barrier_wait(empty + 8 * stage, phase ^ 1);
                    if (RESIDUAL) {
                        const u32 panels = PANELS - first < ROOM ? PANELS - first : ROOM;
                        barrier_expect(done, panels * PANEL);
                        for (u32 i = 0; i < panels; i++)
                            copy_box(ring + stage * STAGE + i * PANEL, &map_residual, done,
                                tile.first_output + (first + i) * WIDTH, tile.x, tile.y, tile.image, KEEP_LITTLE);
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
    const u32 slices = c.kernel_h * c.kernel_w * c.slices;
    u32 stage = 0, phase = 0;
    for (u32 index = blockIdx.x; index < c.tiles; index += gridDim.x) {
        const Tile tile(index, c);
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

        const u32 first_pixel = group * 64 * BLOCKS;
#pragma unroll
        for (u32 part = 0; part < RESULT_STAGES; part++) {
            const u32 from = ring + stage * STAGE;
            barrier_wait(full + 8 * stage, phase);
#pragma unroll
            for (u32 i = part * ROOM; i < PANELS && i < (part + 1) * ROOM; i++)
#pragma unroll
                for (u32 pair = 0; pair < WIDTH / 16; pair++) {
                    const u32 column = i * WIDTH + pair * 16, output = tile.first_output + column + lane % 4 * 2;
                    float plus[4] = {};
#pragma unroll
                    for (u32 k = 0; k < 4; k++)
                        if (BIAS && output + k / 2 * 8 < c.outputs) plus[k] = load(bias + output + k / 2 * 8 + k % 2);
#pragma unroll
                    for (u32 block = 0; block < BLOCKS; block++) {
                        const u32 pixel = first_pixel + block * 64 + warp % 4 * 16 + lane % 16;
                        const u32 at = from + (i - part * ROOM) * PANEL + chunk_at(pixel, pair * 2 + lane / 16);
                        u32 added[4] = {}, words[4];
                        if (RESIDUAL) load_matrices(added, at);
#pragma unroll
                        for (u32 k = 0; k < 4; k++) {
                            // Matrices: upper and lower pixels of the first eight channels, then of the second.
                            const float* d = sums[block] + column / 2 + k * 2;
                            float low = ACTIVATION(d[0] + plus[k / 2 * 2]);
                            float high = ACTIVATION(d[1] + plus[k / 2 * 2 + 1]);
                            if (RESIDUAL) {
                                low += widen(TX{(u16)added[k]});
                                high += widen(TX{(u16)(added[k] >> 16)});
                            }
                            words[k] = Pair<TX>::of(low, high);
                        }
                        store_matrices(at, words[0], words[1], words[2], words[3]);
                    }
                }
            fence_shared_for_async();
            named_sync(1 + group, 128);
            if (warp % 4 == 0) {
                if (elect_one()) {
                    const u32 row = tile.y + first_pixel / c.tile_w;
#pragma unroll
                    for (u32 i = part * ROOM; i < PANELS && i < (part + 1) * ROOM; i++)
                        write_box(&map_y, from + (i - part * ROOM) * PANEL + first_pixel * WIDTH * 2,
                            tile.first_output + i * WIDTH, tile.x, row, tile.image);
                    writes_commit();
                    writes_wait_read<0>();
                }
                __syncwarp();
            }
            if (lane == 0) barrier_arrive(empty + 8 * stage);
            next(stage, phase);
        }
    }
    // Shared memory stays until everything has been copied out of it.
    if (warp % 4 == 0) writes_wait<0>();
}
