// y = act(x * w + b) + residual on Hopper's tensor cores: images [N, C, H, W] of 16-bit elements, stride one, one group.
//
// `conv2d_layout` brings an image into rows of PITCH pixels, padding included, the channels of a pixel side by side,
// C filled up to whole slices of 64. The zeros between the end of one row and the beginning of the next serve both, so
// that the neighbour (ky, kx) of every pixel is ky * PITCH + kx further, and boxes of the copy engine are shifted copies:
// no column is gathered. (Channels lie innermost because the copy engine shifts that dimension by 16 bytes only.)
// Weights [O, C, taps] become [O, taps, C]. `conv2d_wgmma` is then a product of weights and pixels, rows of K both; its
// result has a few columns a row that belong to no pixel. Pointwise convolutions read planes as they are (PLANAR): rows
// of pixels, B read [K][N].
//
// The structure is that of gemm_wgmma.cu: persistent tiles, one thread that copies, a warpgroup for every 64 channels.
//
// Macros: PLANAR 1 where planes are read as they are; TX the elements of x and w, bf16_t or half_t; TY, TBIAS,
// TRESIDUAL, ACTIVATION as epilogue.cuh says, without scales; TILE_M output channels x TILE_N pixels a tile; STAGES,
// PRODUCER, CONSUMER as in gemm_wgmma.cu.
#include "epilogue.cuh"
#include "sm90.cuh"
#include "wgmma.cuh"

const u32 GROUPS = TILE_M / 64, THREADS = 128 * (GROUPS + 1);
const u32 PANEL = 64 * 128, BYTES_W = TILE_M * 128, BYTES_X = TILE_N / 64 * PANEL, SLICE = BYTES_W + BYTES_X;

struct Layout {
    // Images to lay out, and rows of weights.
    u32 images, outputs;
    u32 height, width, pad_y, pad_x;
    // Rows of an image, pixels of a row; taps, channels, channels filled up.
    u32 rows, pitch, taps, channels, filled;
};

// A block turns 32 pixels of 64 channels at a time, then takes its share of the weights.
extern "C" __global__ void __launch_bounds__(256) conv2d_layout(
    const TX* __restrict__ x, const TX* __restrict__ w, uint4* __restrict__ pixels, uint4* __restrict__ taps,
    const Layout l)
{
    wait_for_launch_before();
    // One element more a row: then the 8 channels of 32 pixels lie in different banks.
    __shared__ u16 tile[64][33];
    const u32 flat = l.rows * l.pitch, runs = (flat + 31) / 32, parts = l.filled / 64;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (u32 at = blockIdx.x; at < l.images * runs * parts; at += gridDim.x) {
        const u32 image = at / (runs * parts), part = at % parts, first = at / parts % runs * 32;
        const u32 place = first + lane, row = place / l.pitch - l.pad_y, column = place % l.pitch - l.pad_x;
        const bool there = place < flat && row < l.height && column < l.width;
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            const u32 channel = part * 64 + warp * 8 + i;
            const i64 from = (((i64)image * l.channels + channel) * l.height + row) * l.width + column;
            tile[warp * 8 + i][lane] = there && channel < l.channels ? x[from].bits : 0;
        }
        __syncthreads();
        const u32 pixel = threadIdx.x / 8, chunk = threadIdx.x % 8;
        if (first + pixel < flat) {
            u32 words[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++)
                words[i] = tile[chunk * 8 + 2 * i][pixel] | (u32)tile[chunk * 8 + 2 * i + 1][pixel] << 16;
            pixels[((i64)image * flat + first + pixel) * (l.filled / 8) + part * 8 + chunk] =
                {words[0], words[1], words[2], words[3]};
        }
        __syncthreads();
    }
    for (u32 at = blockIdx.x * 256 + threadIdx.x; at < l.outputs * l.taps * (l.filled / 8); at += gridDim.x * 256) {
        const u32 line = at / (l.filled / 8), first = (at - line * (l.filled / 8)) * 8;
        const u32 output = line / l.taps, tap = line - output * l.taps;
        u32 words[4] = {};
#pragma unroll
        for (u32 i = 0; i < 8; i++)
            if (first + i < l.channels) {
                const TX value = w[((i64)output * l.channels + first + i) * l.taps + tap];
                words[i / 2] |= (u32)value.bits << (16 * (i % 2));
            }
        taps[at] = {words[0], words[1], words[2], words[3]};
    }
}

struct Planes {
    u32 images, outputs, out_height, out_width, pitch;
    u32 kernel_h, kernel_w, dilation_y, dilation_x;
    // Slices of 64 channels.
    u32 slices;
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) conv2d_wgmma(
    const __grid_constant__ TensorMap map_w, const __grid_constant__ TensorMap map_x, TY* __restrict__ y,
    const TBIAS* __restrict__ bias, const TRESIDUAL* __restrict__ residual, const Planes p)
{
    extern __shared__ __align__(1024) u8 shared[];
    const u32 ring = shared_address(shared), full = ring + STAGES * SLICE, empty = full + 8 * STAGES;
    const u32 warp = warp_index(), group = warpgroup_index(), lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        tensor_map_prefetch(&map_w);
        tensor_map_prefetch(&map_x);
        ring_init(full, empty, STAGES, 4 * GROUPS);
        barrier_init_done();
    }
    __syncthreads();
    wait_for_launch_before();
    const u32 flat = p.out_height * p.pitch, pixels = p.out_height * p.out_width;
    const u32 tiles_m = (p.outputs + TILE_M - 1) / TILE_M, tiles_n = (flat + TILE_N - 1) / TILE_N;
    const u32 tiles = tiles_m * tiles_n * p.images;

    if (group == GROUPS) {
#if PRODUCER
        registers_lower<PRODUCER>();
#endif
        if (warp == 4 * GROUPS && elect_one()) {
            u32 stage = 0, phase = 0;
            for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
                const u32 m = tile % tiles_m, n = tile / tiles_m % tiles_n, image = tile / tiles_m / tiles_n;
                i32 depth = 0;
                for (u32 ky = 0; ky < p.kernel_h; ky++)
                    for (u32 kx = 0; kx < p.kernel_w; kx++) {
                        const i32 pixel = n * TILE_N + ky * p.dilation_y * p.pitch + kx * p.dilation_x;
                        for (u32 slice = 0; slice < p.slices; slice++) {
                            const u32 to = ring + stage * SLICE, done = full + 8 * stage;
                            barrier_wait(empty + 8 * stage, phase ^ 1);
                            barrier_expect(done, SLICE);
                            copy_box(to, &map_w, done, depth, m * TILE_M, KEEP_LONG);
#if PLANAR
#pragma unroll
                            for (u32 i = 0; i < TILE_N / 64; i++)
                                copy_box(to + BYTES_W + i * PANEL, &map_x, done, pixel + i * 64, slice * 64, image,
                                    KEEP_NORMAL);
#else
                            copy_box(to + BYTES_W, &map_x, done, slice * 64, pixel, image, KEEP_NORMAL);
#endif
                            depth += 64;
                            if (++stage == STAGES) stage = 0, phase ^= 1;
                        }
                    }
            }
        }
        return;
    }
#if PRODUCER
    registers_raise<CONSUMER>();
#endif
    const u32 slices = p.kernel_h * p.kernel_w * p.slices;
    u32 stage = 0, phase = 0;
    for (u32 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const u32 m = tile % tiles_m, n = tile / tiles_m % tiles_n, image = tile / tiles_m / tiles_n;
        float sums[TILE_N / 2];
        for (u32 slice = 0; slice < slices; slice++) {
            barrier_wait(full + 8 * stage, phase);
            const u64 a = operand_k128(ring + stage * SLICE + group * 64 * 128);
            const u32 pixels_at = ring + stage * SLICE + BYTES_W;
            const u64 b = PLANAR ? operand_mn128(pixels_at, PANEL) : operand_k128(pixels_at);
            pin(sums);
            products_fence();
#pragma unroll
            for (u32 step = 0; step < 4; step++)
                Step<TX>::add<PLANAR>(sums, a + step * 2, b + step * (PLANAR ? 128 : 2), step != 0 || slice != 0);
            products_commit();
            pin(sums);
            // One slice stays in flight; the one before is free.
            products_wait<1>();
            if (slice > 0 && lane == 0) barrier_arrive(empty + 8 * (stage == 0 ? STAGES - 1 : stage - 1));
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
        products_wait<0>();
        pin(sums);
        if (lane == 0) barrier_arrive(empty + 8 * (stage == 0 ? STAGES - 1 : stage - 1));

        const u32 output = m * TILE_M + group * 64 + warp % 4 * 16 + lane / 4;
        const i64 first = ((i64)image * p.outputs + output) * pixels;
        float plus[2] = {0.f, 0.f};
#pragma unroll
        for (u32 half = 0; half < 2; half++)
            if (BIAS && output + half * 8 < p.outputs) plus[half] = load(bias + output + half * 8);
        // Where rows have an even number of pixels, two neighbours are aligned and both there or not.
        const bool paired = p.out_width % 2 == 0;
        // Eight pairs of pixels at a time, so that loads overlap.
#pragma unroll
        for (u32 part = 0; part < TILE_N / 64; part++) {
            u32 places[8];
            float2 extra[8][2];
#pragma unroll
            for (u32 j = 0; j < 8; j++) {
                const u32 at = n * TILE_N + part * 64 + j * 8 + lane % 4 * 2;
                const u32 row = at / p.pitch, column = at - row * p.pitch;
                places[j] = row < p.out_height && column < p.out_width ? row * p.out_width + column : ~0u;
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    extra[j][half] = {0.f, 0.f};
                    if (RESIDUAL && places[j] != ~0u && output + half * 8 < p.outputs) {
                        const TRESIDUAL* from = residual + first + (i64)half * 8 * pixels + places[j];
                        if (paired) {
                            extra[j][half] = load_pair(from);
                        } else {
                            extra[j][half].x = load(from);
                            if (column + 1 < p.out_width) extra[j][half].y = load(from + 1);
                        }
                    }
                }
            }
#pragma unroll
            for (u32 j = 0; j < 8; j++)
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    if (places[j] == ~0u || output + half * 8 >= p.outputs) continue;
                    const float* d = sums + (part * 8 + j) * 4 + half * 2;
                    const float left = ACTIVATION(d[0] + plus[half]) + extra[j][half].x;
                    const float right = ACTIVATION(d[1] + plus[half]) + extra[j][half].y;
                    TY* to = y + first + (i64)half * 8 * pixels + places[j];
                    if (paired) {
                        *(u32*)to = Pair<TY>::of(left, right);
                    } else {
                        store(to, left);
                        // The last pixel of an odd row is an even one.
                        if ((places[j] + 1) % p.out_width != 0) store(to + 1, right);
                    }
                }
        }
    }
}
