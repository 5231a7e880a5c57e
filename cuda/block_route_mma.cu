// Which key blocks every query block attends to, as in block_route.cu, for bf16 heads of 64 columns by `mma.sync`. Three
// kernels: means of parts of query blocks, and of key blocks, each as the sum of two bf16; lists.
//
// A product of means is three products of bf16, which leaves errors of 2^-16. What is common to all keys changes no
// choice; the mean of a sample of keys is taken off so that little of it is left. Where the score is a mean of
// softmaxes, products are computed twice: for maxima and sums, then for the scores.
//
// Macros: PARTS of a query block, a power of two up to 16, 1 where it is not cut; TILES of 16 parts a block of threads;
// MASS 1 for the third result.
#include "activations.cuh"
#include "blocks.cuh"
#include "mma.cuh"
#include "vectors.cuh"

const u32 WIDTH = 64, SAMPLE = 64;
const u32 LISTS = TILES * 16 / PARTS, SPLITS = 8 / TILES;
// The score of what is not there, and the key of what is always kept.
const float NOTHING = -1e30f;
const u32 ALWAYS = ~0u;

// A mean as high + low.
struct Mean { bf16_t high[WIDTH], low[WIDTH]; };

// Means of the parts of blocks of x [heads, n, 64], times `slope`, a part a warp at a time: part i % parts of block
// i / parts has `part` tokens. Parts that are not there have a mean of zero. CENTRED: without the mean of the sample.
template <bool CENTRED> DEVICE void write_means(
    const bf16_t* x, Mean* means, const Cut& cut, u32 parts, u32 part, u32 count, u32 groups, u32 n, float slope)
{
    __shared__ float middle[8][WIDTH];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = lane % 8 * 8;
    const u32 head = blockIdx.x / groups, group = blockIdx.x - head * groups;
    x += (i64)head * n * WIDTH + column;
    // Sums of eight columns over tokens that four groups of lanes share.
    auto share = [&](float (&sums)[8]) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            sums[i] += __shfl_xor_sync(~0u, sums[i], 8);
            sums[i] += __shfl_xor_sync(~0u, sums[i], 16);
        }
    };
    float centre[8] = {};
    if (CENTRED) {
#pragma unroll
        for (u32 i = 0; i < SAMPLE / 32; i++) {
            const u32 at = (warp * 4 + lane / 8) * (SAMPLE / 32) + i;
            float own[8];
            load_neighbours(own, x + (u64)at * n / SAMPLE * WIDTH);
#pragma unroll
            for (u32 j = 0; j < 8; j++) centre[j] += own[j];
        }
        share(centre);
        if (lane < 8)
#pragma unroll
            for (u32 j = 0; j < 8; j++) middle[warp][column + j] = centre[j];
        __syncthreads();
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            centre[j] = 0.f;
            for (u32 i = 0; i < 8; i++) centre[j] += middle[i][column + j];
            centre[j] /= SAMPLE;
        }
    }
    for (u32 i = warp; i < 64 && group * 64 + i < count; i += 8) {
        const u32 at = group * 64 + i, block = at / parts;
        const Range range = tokens_of(cut, block);
        const i32 begin = range.begin + (at - block * parts) * part, end = min(range.end, begin + (i32)part);
        float sums[8] = {};
#pragma unroll 4
        for (i32 token = begin + lane / 8; token < end; token += 4) {
            float own[8];
            load_neighbours(own, x + (i64)token * WIDTH);
#pragma unroll
            for (u32 j = 0; j < 8; j++) sums[j] += own[j];
        }
        share(sums);
        const float over = begin < end ? 1.f / (end - begin) : 0.f;
        float low[8];
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            sums[j] = (sums[j] * over - centre[j]) * slope;
            bf16_t high;
            narrow(high, sums[j]);
            low[j] = sums[j] - widen(high);
        }
        Mean& to = means[(u64)head * count + at];
        if (lane < 8) {
            store_neighbours(to.high + column, sums);
            store_neighbours(to.low + column, low);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) query_means(
    const bf16_t* __restrict__ q, Mean* __restrict__ means, const __grid_constant__ Cut cut, const u32 part,
    const u32 count, const u32 groups, const u32 n, const float slope)
{
    wait_for_launch_before();
    write_means<false>(q, means, cut, PARTS, part, count, groups, n, slope);
}

extern "C" __global__ void __launch_bounds__(256) key_means(
    const bf16_t* __restrict__ k, Mean* __restrict__ means, const __grid_constant__ Cut cut, const u32 count,
    const u32 groups, const u32 n)
{
    wait_for_launch_before();
    write_means<true>(k, means, cut, 1, cut.size, count, groups, n, 1.f);
}

// Unsigned numbers in the order of floats, all below ALWAYS, and back.
DEVICE u32 ordered(float x) {
    const u32 bits = __float_as_uint(x);
    return min(bits & 0x80000000 ? ~bits : bits | 0x80000000, ALWAYS - 1);
}
DEVICE float score_of(u32 key) { return __uint_as_float(key & 0x80000000 ? key ^ 0x80000000 : ~key); }

// What is always kept: key blocks in ranges, and, unless `own` is 0, those that hold a token of the query block or of
// its run.
struct Kept { i32 count, ranges, first[MAX_RUNS], last[MAX_RUNS], own; };
const i32 OWN_RUN = 2;

extern "C" __global__ void __launch_bounds__(256, 2) route_mma(
    const Mean* __restrict__ q, const Mean* __restrict__ k, i32* __restrict__ lists, i32* __restrict__ counts,
    float* __restrict__ mass, const __grid_constant__ Cut query_cut, const __grid_constant__ Cut key_cut,
    const __grid_constant__ Kept kept, const u32 query_blocks, const u32 key_blocks, const u32 longest,
    const u32 groups, const u32 part)
{
    wait_for_launch_before();
    // Scores of LISTS query blocks, rows 8 banks apart.
    extern __shared__ float shared[];
    __shared__ float tops[8][16], totals[8][16];
    const u32 stride = (key_blocks + 31) / 32 * 32 + 8, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 head = blockIdx.x / groups, first = (blockIdx.x - head * groups) * LISTS;
    const u32 tile = warp % TILES, split = warp / TILES, row = lane / 4, words = lane % 4 * 8;
    const u64 parts = (u64)head * query_blocks * PARTS;
    k += (u64)head * key_blocks;

    // A lane loads eight neighbouring columns of a row: columns are multiplied in an order of their own.
    uint4 high[2][2], low[2][2];
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        const u32 at = min(first * PARTS + tile * 16 + row + 8 * i, query_blocks * PARTS - 1);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            high[i][half] = *(const uint4*)(q[parts + at].high + half * 32 + words);
            low[i][half] = *(const uint4*)(q[parts + at].low + half * 32 + words);
        }
    }
    // Scores of 16 parts and key blocks `at` to `at` + 7.
    auto multiply = [&](float (&sums)[4], u32 at) {
        const Mean& mean = k[min(at + row, key_blocks - 1)];
        uint4 b[2], c[2];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            b[half] = *(const uint4*)(mean.high + half * 32 + words);
            c[half] = *(const uint4*)(mean.low + half * 32 + words);
        }
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 fine[2][4] = {{high[0][half].x, high[1][half].x, high[0][half].y, high[1][half].y},
                {high[0][half].z, high[1][half].z, high[0][half].w, high[1][half].w}};
            const u32 finer[2][4] = {{low[0][half].x, low[1][half].x, low[0][half].y, low[1][half].y},
                {low[0][half].z, low[1][half].z, low[0][half].w, low[1][half].w}};
            Mma<bf16_t>::add(sums, finer[0], b[half].x, b[half].y);
            Mma<bf16_t>::add(sums, finer[1], b[half].z, b[half].w);
            Mma<bf16_t>::add(sums, fine[0], c[half].x, c[half].y);
            Mma<bf16_t>::add(sums, fine[1], c[half].z, c[half].w);
            Mma<bf16_t>::add(sums, fine[0], b[half].x, b[half].y);
            Mma<bf16_t>::add(sums, fine[1], b[half].z, b[half].w);
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            if (at + lane % 4 * 2 + i % 2 >= key_blocks) sums[i] = NOTHING;
    };

    // What is taken off the scores of a part before the exponential: with it a softmax over the keys is divided by the
    // number of parts.
    float off[2] = {0.f, 0.f};
    if (PARTS > 1) {
        float top[2] = {NOTHING, NOTHING}, total[2] = {0.f, 0.f};
#pragma unroll 2
        for (u32 at = split * 8; at < key_blocks; at += SPLITS * 8) {
            float sums[4] = {};
            multiply(sums, at);
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                const float most = fmaxf(top[i], fmaxf(sums[2 * i], sums[2 * i + 1]));
                total[i] = fmaf(total[i], exp2_fast(top[i] - most),
                    exp2_fast(sums[2 * i] - most) + exp2_fast(sums[2 * i + 1] - most));
                top[i] = most;
            }
        }
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const float most = lanes_max<4>(top[i]);
            total[i] = lanes_sum<4>(total[i] * exp2_fast(top[i] - most));
            if (lane % 4 == 0) {
                tops[warp][row + 8 * i] = most;
                totals[warp][row + 8 * i] = total[i];
            }
        }
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            float most = NOTHING, sum = 0.f;
            for (u32 other = tile; other < 8; other += TILES) most = fmaxf(most, tops[other][row + 8 * i]);
            for (u32 other = tile; other < 8; other += TILES)
                sum += totals[other][row + 8 * i] * exp2_fast(tops[other][row + 8 * i] - most);
            const u32 at = tile * 16 + row + 8 * i, list = first + at / PARTS;
            off[i] = -NOTHING;
            if (list < query_blocks) {
                const Range range = tokens_of(query_cut, list);
                const u32 there = (range.end - range.begin + part - 1) / part;
                if (at % PARTS < there) off[i] = most + log2f(sum * there);
            }
        }
    }
    for (u32 at = split * 8; at < key_blocks; at += SPLITS * 8) {
        float sums[4] = {};
        multiply(sums, at);
        if (PARTS > 1) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                sums[i] = exp2_fast(sums[i] - off[i / 2]);
#pragma unroll
                for (u32 step = 4; step < 4 * min(PARTS, 8); step *= 2) sums[i] += __shfl_xor_sync(~0u, sums[i], step);
            }
            if (PARTS == 16) sums[0] += sums[2], sums[1] += sums[3];
        }
#pragma unroll
        for (u32 i = 0; i < (PARTS == 16 ? 1 : 2); i++)
            if (row % min(PARTS, 8) == 0)
                *(float2*)(shared + (tile * 16 + row + 8 * i) / PARTS * stride + at + lane % 4 * 2) =
                    {sums[2 * i], sums[2 * i + 1]};
    }
    __syncthreads();

    for (u32 own = warp; own < LISTS && first + own < query_blocks; own += 8) {
        float* scores = shared + own * stride;
        u32* keys = (u32*)scores;
        const u64 list = (u64)head * query_blocks + first + own;
        Range near = {0, 0};
        if (kept.own) {
            Range tokens = tokens_of(query_cut, first + own);
            if (kept.own == OWN_RUN) tokens = run_at(key_cut, tokens.begin);
            near = {place_of(key_cut, tokens.begin).block, place_of(key_cut, tokens.end - 1).block + 1};
        }
        float top = NOTHING, total = 0.f, sum = 0.f;
        if (MASS && PARTS == 1) {
            for (u32 j = lane; j < key_blocks; j += 32) top = fmaxf(top, scores[j]);
            top = warp_max(top);
            for (u32 j = lane; j < key_blocks; j += 32) total += exp2_fast(scores[j] - top);
            total = warp_sum(total);
        }
        auto weight = [&](float score) { return PARTS > 1 ? score : exp2_fast(score - top) / total; };
        u32 fixed = 0;
#pragma unroll 4
        for (u32 j = lane; j < key_blocks; j += 32) {
            bool always = (i32)j >= near.begin && (i32)j < near.end;
            for (i32 i = 0; i < kept.ranges; i++) always |= (i32)j >= kept.first[i] && (i32)j < kept.last[i];
            if (MASS && always) sum += weight(scores[j]);
            fixed += always;
            keys[j] = always ? ALWAYS : ordered(scores[j]);
        }
        __syncwarp();
        auto at_least = [&](u32 key) {
            u32 count = 0;
#pragma unroll 8
            for (u32 j = lane; j < key_blocks; j += 32) count += keys[j] >= key;
            return __reduce_add_sync(~0u, count);
        };
        // The greatest key that enough blocks reach.
        const u32 wanted = max(__reduce_add_sync(~0u, fixed), (u32)kept.count);
        u32 threshold = 0;
        for (u32 bit = 1u << 31; bit; bit /= 2) {
            const u32 reached = at_least(threshold | bit);
            if (reached >= wanted) threshold |= bit;
            if (reached == wanted) break;
        }
        u32 equals = threshold == ALWAYS ? wanted : wanted - at_least(threshold + 1), written = 0;
        const u32 before = (1u << lane) - 1;
        for (u32 base = 0; base < key_blocks; base += 32) {
            const u32 j = base + lane, key = j < key_blocks ? keys[j] : 0;
            const bool equal = j < key_blocks && key == threshold;
            const u32 same = __ballot_sync(~0u, equal);
            const bool take = (j < key_blocks && key > threshold) || (equal && __popc(same & before) < equals);
            const u32 taken = __ballot_sync(~0u, take);
            if (take) {
                lists[list * longest + written + __popc(taken & before)] = j;
                if (MASS && key != ALWAYS) sum += weight(score_of(key));
            }
            equals -= min(equals, (u32)__popc(same));
            written += __popc(taken);
        }
        for (u32 j = written + lane; j < longest; j += 32) lists[list * longest + j] = -1;
        if (MASS) sum = warp_sum(sum);
        if (lane == 0) {
            counts[list] = written;
            if (MASS) mass[list] = sum;
        }
    }
}
