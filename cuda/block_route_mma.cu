// Which key blocks every query block attends to, as in block_route.cu, for bf16 heads of 64 columns by `mma.sync`.
// Three kernels: means of parts of query blocks and of key blocks, each as the sum of two bf16; what the softmax of a
// part is divided by; lists.
//
// A product of means is three products of bf16, which leaves errors of 2^-16. What is common to all keys changes no
// choice; the mean of a sample of keys is taken off so that little of it is left. Where the score is a mean of
// softmaxes, products are computed twice: for maxima and sums, then for the scores.
//
// Macros: PARTS of a query block, a power of two up to 16, 1 where it is not cut; TILES of 16 parts a block of threads,
// ATOMS of them a warp; WARPS; BLOCKS a processor; MASS 1 for the third result.
#include "activations.cuh"
#include "blocks.cuh"
#include "mma.cuh"
#include "vectors.cuh"

const u32 WIDTH = 64, SAMPLE = 64;
const u32 LISTS = TILES * 16 / PARTS;
// Means a block of threads, and tokens that a lane loads at once.
const u32 MEANS = PARTS == 1 ? 8 : 32, BATCH = PARTS == 1 ? 8 : 4;
// The score of what is not there, and the key of what is always kept.
const float NOTHING = -1e30f;
const u32 ALWAYS = ~0u;

// Means lie eight rows together, as warps multiply them: pieces of 32 columns, upper halves of numbers first, lower
// ones behind; of a piece, chunk c of row r is the (4r + c)th.
const u32 GROUP = 8 * 2 * WIDTH / 8;
DEVICE u32 chunk_of(u32 row, u32 column, bool low) {
    return row / 8 * GROUP + (low * 2 + column / 32) * 32 + row % 8 * 4 + column % 32 / 8;
}

// Means of the parts of blocks of x [heads, n, 64], times `slope`, a part a warp at a time: part i % parts of block
// i / parts has `part` tokens. Parts that are not there have a mean of zero. CENTRED: without the mean of the sample.
// A head has `stride` rows of means.
template <bool CENTRED> DEVICE void write_means(
    const bf16_t* x, uint4* means, const Cut& cut, u32 parts, u32 part, u32 count, u32 stride, u32 head, u32 group,
    u32 n, float slope)
{
    __shared__ float middle[8][WIDTH];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = lane % 8 * 8;
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
    for (u32 i = warp; i < MEANS && group * MEANS + i < count; i += 8) {
        const u32 at = group * MEANS + i, block = at / parts;
        const Range range = tokens_of(cut, block);
        const i32 begin = range.begin + (at - block * parts) * part, end = min(range.end, begin + (i32)part);
        float sums[8] = {};
        for (i32 token = begin + lane / 8; token < end; token += 4 * BATCH) {
            Neighbours<bf16_t, 8> own[BATCH];
#pragma unroll
            for (u32 b = 0; b < BATCH; b++)
                own[b] = token + 4 * (i32)b < end ? *(const Neighbours<bf16_t, 8>*)(x + (i64)(token + 4 * b) * WIDTH)
                                                  : Neighbours<bf16_t, 8>{};
#pragma unroll
            for (u32 b = 0; b < BATCH; b++)
#pragma unroll
                for (u32 j = 0; j < 8; j++) sums[j] += widen(own[b].of[j]);
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
        if (lane < 8) {
            const u32 row = head * stride + at;
            store_neighbours((bf16_t*)(means + chunk_of(row, column, false)), sums);
            store_neighbours((bf16_t*)(means + chunk_of(row, column, true)), low);
        }
    }
}

// Groups of MEANS means of the queries of all heads, then of the keys.
extern "C" __global__ void __launch_bounds__(256) write_all_means(
    const bf16_t* __restrict__ q, const bf16_t* __restrict__ k, uint4* __restrict__ query_means,
    uint4* __restrict__ key_means, const __grid_constant__ Cut query_cut, const __grid_constant__ Cut key_cut,
    const u32 part, const u32 query_parts, const u32 key_blocks, const u32 query_stride, const u32 key_stride,
    const u32 query_groups, const u32 key_groups, const u32 heads, const u32 n, const u32 m, const float slope)
{
    wait_for_launch_before();
    if (blockIdx.x < heads * query_groups) {
        const u32 head = blockIdx.x / query_groups, group = blockIdx.x - head * query_groups;
        write_means<false>(
            q, query_means, query_cut, PARTS, part, query_parts, query_stride, head, group, n, slope);
    } else {
        const u32 at = blockIdx.x - heads * query_groups, head = at / key_groups, group = at - head * key_groups;
        write_means<true>(
            k, key_means, key_cut, 1, key_cut.size, key_blocks, key_stride, head, group, m, 1.f);
    }
}

// Sixteen rows of means a lane's share of which is in registers: rows r and r + 8, two pieces each, upper and lower
// halves. A lane has eight neighbouring columns of a row: columns are multiplied in an order of their own.
struct MeanRows { uint4 high[2][2], low[2][2]; };
DEVICE void load_rows(MeanRows& rows, const uint4* means, u32 first) {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (u32 i = 0; i < 2; i++)
#pragma unroll
        for (u32 piece = 0; piece < 2; piece++) {
            rows.high[i][piece] = means[(first / 8 + i) * GROUP + piece * 32 + lane];
            rows.low[i][piece] = means[(first / 8 + i) * GROUP + (2 + piece) * 32 + lane];
        }
}

// Products of COUNT * 16 rows with the means of groups of eight keys, every `step`th from `first` on: use(sums, group).
// A piece of the next means is on its way while one is multiplied.
template <u32 COUNT, class Use> DEVICE void multiply(
    const MeanRows (&rows)[COUNT], const uint4* keys, u32 first, u32 step, u32 groups, Use use)
{
    if (first >= groups) return;
    const u32 lane = threadIdx.x % 32;
    auto load = [&](uint4 (&to)[2], u32 group, u32 piece) {
        to[0] = keys[group * GROUP + piece * 32 + lane];
        to[1] = keys[group * GROUP + (2 + piece) * 32 + lane];
    };
    // Two chains of sums, equally long.
    auto add = [&](float (&sums)[COUNT][4], float (&others)[COUNT][4], const uint4 (&b)[2], u32 piece) {
        const uint4 &upper = b[0], &lower = b[1];
#pragma unroll
        for (u32 half = 0; half < 2; half++)
#pragma unroll
            for (u32 a = 0; a < COUNT; a++) {
                const uint4 &high = rows[a].high[0][piece], &high_8 = rows[a].high[1][piece];
                const uint4 &low = rows[a].low[0][piece], &low_8 = rows[a].low[1][piece];
                const u32 fine[4] = {half ? high.z : high.x, half ? high_8.z : high_8.x, half ? high.w : high.y,
                    half ? high_8.w : high_8.y};
                const u32 finer[4] = {half ? low.z : low.x, half ? low_8.z : low_8.x, half ? low.w : low.y,
                    half ? low_8.w : low_8.y};
                auto& other = half ? sums[a] : others[a];
                Mma<bf16_t>::add(others[a], finer, half ? upper.z : upper.x, half ? upper.w : upper.y);
                Mma<bf16_t>::add(sums[a], fine, half ? lower.z : lower.x, half ? lower.w : lower.y);
                Mma<bf16_t>::add(other, fine, half ? upper.z : upper.x, half ? upper.w : upper.y);
            }
    };
    uint4 now[2], next[2];
    load(now, first, 0);
    for (u32 group = first; group < groups; group += step) {
        float sums[COUNT][4] = {}, others[COUNT][4] = {};
        load(next, group, 1);
        add(sums, others, now, 0);
        load(now, min(group + step, groups - 1), 0);
        add(sums, others, next, 1);
#pragma unroll
        for (u32 a = 0; a < COUNT; a++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) sums[a][i] += others[a][i];
        use(sums, group);
    }
}

// Tiles of 16 parts of a block that weighs parts; how far a score may stand above what is taken off it meanwhile.
const u32 WEIGHED = 4;
const float MARGIN = 16.f;

// What is taken off the scores of every part before the exponential: with it a softmax over the keys is divided by the
// number of parts.
extern "C" __global__ void __launch_bounds__(256, 2) weigh_parts(
    const uint4* __restrict__ q, const uint4* __restrict__ k, float* __restrict__ offs,
    const __grid_constant__ Cut query_cut, const u32 query_blocks, const u32 key_blocks, const u32 query_stride,
    const u32 key_stride, const u32 groups, const u32 part)
{
    wait_for_launch_before();
    const u32 COUNT = 2, SPLITS = 8 / (WEIGHED / COUNT);
    __shared__ float tops[8][COUNT * 16], totals[8][COUNT * 16];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, side = warp / SPLITS;
    const u32 head = blockIdx.x / groups, first = (blockIdx.x - head * groups) * WEIGHED * 16;
    MeanRows rows[COUNT];
#pragma unroll
    for (u32 a = 0; a < COUNT; a++)
        load_rows(rows[a], q, head * query_stride + min(first + (side * COUNT + a) * 16, query_stride - 16));
    float top[COUNT][2], total[COUNT][2] = {};
#pragma unroll
    for (u32 a = 0; a < COUNT; a++) top[a][0] = top[a][1] = NOTHING;
    multiply(rows, k + head * (key_stride / 8) * GROUP, warp % SPLITS, SPLITS, (key_blocks + 7) / 8,
        [&](float (&sums)[COUNT][4], u32 group) {
            if (group * 8 + 8 > key_blocks)
#pragma unroll
                for (u32 a = 0; a < COUNT; a++)
#pragma unroll
                    for (u32 i = 0; i < 4; i++)
                        if (group * 8 + lane % 4 * 2 + i % 2 >= key_blocks) sums[a][i] = NOTHING;
            bool grown = false;
#pragma unroll
            for (u32 a = 0; a < COUNT; a++)
#pragma unroll
                for (u32 i = 0; i < 2; i++) grown |= fmaxf(sums[a][2 * i], sums[a][2 * i + 1]) > top[a][i] + MARGIN;
            if (__any_sync(~0u, grown))
#pragma unroll
                for (u32 a = 0; a < COUNT; a++)
#pragma unroll
                    for (u32 i = 0; i < 2; i++) {
                        const float most = fmaxf(top[a][i], fmaxf(sums[a][2 * i], sums[a][2 * i + 1]));
                        total[a][i] *= exp2_fast(top[a][i] - most);
                        top[a][i] = most;
                    }
#pragma unroll
            for (u32 a = 0; a < COUNT; a++)
#pragma unroll
                for (u32 i = 0; i < 4; i++) total[a][i / 2] += exp2_fast(sums[a][i] - top[a][i / 2]);
        });
#pragma unroll
    for (u32 a = 0; a < COUNT; a++)
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const float most = lanes_max<4>(top[a][i]);
            const float sum = lanes_sum<4>(total[a][i] * exp2_fast(top[a][i] - most));
            if (lane % 4 == 0) {
                tops[warp][a * 16 + i * 8 + lane / 4] = most;
                totals[warp][a * 16 + i * 8 + lane / 4] = sum;
            }
        }
    __syncthreads();
    const u32 at = first + threadIdx.x, from = threadIdx.x / (COUNT * 16) * SPLITS, row = threadIdx.x % (COUNT * 16);
    if (threadIdx.x >= WEIGHED * 16 || at >= query_blocks * PARTS) return;
    float most = NOTHING, sum = 0.f;
    for (u32 i = from; i < from + SPLITS; i++) most = fmaxf(most, tops[i][row]);
    for (u32 i = from; i < from + SPLITS; i++) sum += totals[i][row] * exp2_fast(tops[i][row] - most);
    const Range range = tokens_of(query_cut, at / PARTS);
    const u32 there = (range.end - range.begin + part - 1) / part;
    offs[head * query_stride + at] = at % PARTS < there ? most + log2f(sum * there) : -NOTHING;
}

// Unsigned numbers in the order of floats, all above 0 and below ALWAYS, and back.
DEVICE u32 ordered(float x) {
    const u32 bits = __float_as_uint(x);
    // Means of softmaxes are not negative.
    if (PARTS > 1) return min(bits | 0x80000000, ALWAYS - 1);
    return max(min(bits & 0x80000000 ? ~bits : bits | 0x80000000, ALWAYS - 1), 1);
}
DEVICE float score_of(u32 key) { return __uint_as_float(key & 0x80000000 ? key ^ 0x80000000 : ~key); }

// What is always kept: key blocks in ranges, and, unless `own` is 0, those that hold a token of the query block or of
// its run.
struct Kept { i32 count, ranges, first[MAX_RUNS], last[MAX_RUNS], own; };
const i32 OWN_RUN = 2;

// use(key, i) for all keys of a warp, i from 0 to 3 in turns; `count` is a multiple of 128.
template <class Use> DEVICE void each(const u32* keys, u32 count, Use use) {
#pragma unroll 4
    for (u32 i = threadIdx.x % 32 * 4; i < count; i += 128) {
        const uint4 four = *(const uint4*)(keys + i);
        use(four.x, 0);
        use(four.y, 1);
        use(four.z, 2);
        use(four.w, 3);
    }
}

// One more if a key reaches `at`: two instructions, where a choice between numbers takes three.
DEVICE void count_reaching(u32& count, u32 key, u32 at) {
    asm("{\n.reg .pred reaches;\nsetp.ge.u32 reaches, %1, %2;\n@reaches add.u32 %0, %0, 1;\n}"
        : "+r"(count) : "r"(key), "r"(at));
}

// A key that at least `wanted` of a warp's `there` keys reach, `fixed` of which are ALWAYS: that many, or the greatest
// there is. `reached` is how many do. Keys from `there` to `count` are 0.
DEVICE u32 reach(const u32* keys, u32 count, u32 there, u32 wanted, u32 fixed, u32* few, u32& reached) {
    reached = fixed;
    if (fixed == wanted) return ALWAYS;
    // From the least key to one above the greatest that is not ALWAYS; how many reach either.
    u32 lows[4] = {~0u, ~0u, ~0u, ~0u}, highs[4] = {}, above = fixed;
    each(keys, count, [&](u32 key, u32 i) {
        lows[i] = min(lows[i], key - 1);
        highs[i] = max(highs[i], key + 1);
    });
    u32 low = __reduce_min_sync(~0u, min(min(lows[0], lows[1]), min(lows[2], lows[3]))) + 1;
    u32 high = __reduce_max_sync(~0u, max(max(highs[0], highs[1]), max(highs[2], highs[3])));
    reached = there;
    while (reached != wanted && high - low > 1 && reached - above > 32) {
        // Where it is if keys lie evenly, but not too close to what is known.
        const float share = __fdividef(reached - wanted, reached - above);
        const u32 step = (high - low) * fminf(fmaxf(share, 0.2f), 0.8f), at = low + min(max(step, 1), high - low - 1);
        u32 own[4] = {};
        each(keys, count, [&](u32 key, u32 i) { count_reaching(own[i], key, at); });
        const u32 all = __reduce_add_sync(~0u, own[0] + own[1] + own[2] + own[3]);
        if (all >= wanted) low = at, reached = all;
        else high = at, above = all;
    }
    if (reached == wanted || high - low == 1) return low;
    // The few that are left, one a lane; each counts those that reach it.
    const u32 lane = threadIdx.x % 32, before = (1u << lane) - 1, span = high - low;
    u32 found = 0;
    for (u32 i = lane * 4; i < count; i += 128) {
        const uint4 four = *(const uint4*)(keys + i);
        const u32 own[4] = {four.x, four.y, four.z, four.w};
        if (!__any_sync(~0u, own[0] - low < span || own[1] - low < span || own[2] - low < span || own[3] - low < span))
            continue;
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const bool hit = own[j] - low < span;
            const u32 hits = __ballot_sync(~0u, hit);
            if (hit) few[found + __popc(hits & before)] = own[j];
            found += __popc(hits);
        }
    }
    __syncwarp();
    const u32 own = lane < found ? few[lane] : 0;
    u32 reaching = above;
#pragma unroll
    for (u32 i = 0; i < 32; i++) reaching += __shfl_sync(~0u, own, i) >= own;
    const u32 threshold = __reduce_max_sync(~0u, reaching >= wanted ? own : 0);
    reached = above + __popc(__ballot_sync(~0u, own >= threshold));
    __syncwarp();
    return threshold;
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) route_mma(
    const uint4* __restrict__ q, const uint4* __restrict__ k, const float* __restrict__ offs, i32* __restrict__ lists,
    i32* __restrict__ counts, float* __restrict__ mass, const __grid_constant__ Cut query_cut,
    const __grid_constant__ Cut key_cut, const __grid_constant__ Kept kept, const u32 query_blocks,
    const u32 key_blocks, const u32 query_stride, const u32 key_stride, const u32 longest, const u32 groups)
{
    wait_for_launch_before();
    // Keys of LISTS query blocks, rows 8 banks apart.
    extern __shared__ __align__(16) u32 shared[];
    __shared__ u32 few[WARPS][32];
    const u32 padded = (key_blocks + 127) / 128 * 128, stride = padded + 8;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 head = blockIdx.x / groups, first = (blockIdx.x - head * groups) * LISTS;
    const u32 SPLITS = WARPS / (TILES / ATOMS), side = warp / SPLITS, row = lane / 4;

    MeanRows rows[ATOMS];
    float off[ATOMS][2];
#pragma unroll
    for (u32 a = 0; a < ATOMS; a++) {
        const u32 at = head * query_stride + min(first * PARTS + (side * ATOMS + a) * 16, query_stride - 16);
        load_rows(rows[a], q, at);
        if (PARTS > 1) off[a][0] = offs[at + row], off[a][1] = offs[at + row + 8];
    }
    multiply(rows, k + head * (key_stride / 8) * GROUP, warp % SPLITS, SPLITS, (key_blocks + 7) / 8,
        [&](float (&sums)[ATOMS][4], u32 group) {
#pragma unroll
            for (u32 a = 0; a < ATOMS; a++) {
                u32* const to = shared + (side * ATOMS + a) * 16 / PARTS * stride + group * 8;
                if (PARTS > 1)
#pragma unroll
                    for (u32 i = 0; i < 4; i++) sums[a][i] = exp2_fast(sums[a][i] - off[a][i / 2]);
                if (PARTS == 4) {
                    // Four lanes sum four parts, and each is left with one score.
                    const bool upper = row & 1, odd = row & 2;
                    const float first = __shfl_xor_sync(~0u, upper ? sums[a][0] : sums[a][2], 4);
                    const float second = __shfl_xor_sync(~0u, upper ? sums[a][1] : sums[a][3], 4);
                    const float even_sum = (upper ? sums[a][2] : sums[a][0]) + first;
                    const float odd_sum = (upper ? sums[a][3] : sums[a][1]) + second;
                    const float sum = (odd ? odd_sum : even_sum) + __shfl_xor_sync(~0u, odd ? even_sum : odd_sum, 8);
                    to[(row / 4 + 2 * upper) * stride + lane % 4 * 2 + odd] = ordered(sum);
                    continue;
                }
                if (PARTS > 1)
#pragma unroll
                    for (u32 i = 0; i < 4; i++)
#pragma unroll
                        for (u32 step = 4; step < 4 * min(PARTS, 8); step *= 2)
                            sums[a][i] += __shfl_xor_sync(~0u, sums[a][i], step);
                if (PARTS == 16) sums[a][0] += sums[a][2], sums[a][1] += sums[a][3];
#pragma unroll
                for (u32 i = 0; i < (PARTS == 16 ? 1 : 2); i++)
                    if (row % min(PARTS, 8) == 0)
                        *(uint2*)(to + (row + 8 * i) / PARTS * stride + lane % 4 * 2) = {
                            ordered(sums[a][2 * i]), ordered(sums[a][2 * i + 1])};
            }
        });
    __syncthreads();

    for (u32 own = warp; own < LISTS && first + own < query_blocks; own += WARPS) {
        u32* keys = shared + own * stride;
        const u64 list = (u64)head * query_blocks + first + own;
        for (u32 j = key_blocks + lane; j < padded; j += 32) keys[j] = 0;
        __syncwarp();
        float top = NOTHING, total = 0.f, sum = 0.f;
        if (MASS && PARTS == 1) {
            for (u32 j = lane; j < key_blocks; j += 32) top = fmaxf(top, score_of(keys[j]));
            top = warp_max(top);
            for (u32 j = lane; j < key_blocks; j += 32) total += exp2_fast(score_of(keys[j]) - top);
            total = warp_sum(total);
        }
        auto weight = [&](u32 key) { return PARTS > 1 ? score_of(key) : exp2_fast(score_of(key) - top) / total; };
        u32 fixed = 0;
        auto keep = [&](i32 begin, i32 end) {
            for (i32 j = begin + (i32)lane; j < end; j += 32) {
                if (keys[j] == ALWAYS) continue;
                if (MASS) sum += weight(keys[j]);
                keys[j] = ALWAYS;
                fixed++;
            }
            __syncwarp();
        };
        if (kept.own) {
            Range tokens = tokens_of(query_cut, first + own);
            if (kept.own == OWN_RUN) tokens = run_at(key_cut, tokens.begin);
            keep(place_of(key_cut, tokens.begin).block, place_of(key_cut, tokens.end - 1).block + 1);
        }
        for (i32 i = 0; i < kept.ranges; i++) keep(kept.first[i], kept.last[i]);
        fixed = __reduce_add_sync(~0u, fixed);
        const u32 wanted = max(fixed, (u32)kept.count);
        u32 reached;
        const u32 threshold = reach(keys, padded, key_blocks, wanted, fixed, few[warp], reached);

        i32* const to = lists + list * longest;
        const u32 before = (1u << lane) - 1;
        u32 written = 0, equals = 0;
        if (reached != wanted) {
            for (u32 j = lane; j < key_blocks; j += 32) equals += keys[j] == threshold;
            equals = __reduce_add_sync(~0u, equals);
            equals = wanted - (reached - equals);
        }
        auto write = [&](u32 j, u32 key, bool take) {
            const u32 taken = __ballot_sync(~0u, take);
            if (take) {
                to[written + __popc(taken & before)] = j;
                if (MASS && key != ALWAYS) sum += weight(key);
            }
            written += __popc(taken);
        };
        if (reached == wanted) {
#pragma unroll 4
            for (u32 j = lane; j < padded; j += 32) write(j, keys[j], keys[j] >= threshold);
        } else {
            // Not all that equal the threshold.
            for (u32 j = lane; j < padded; j += 32) {
                const u32 key = keys[j], same = __ballot_sync(~0u, key == threshold);
                write(j, key, key > threshold || (key == threshold && __popc(same & before) < equals));
                equals -= min(equals, (u32)__popc(same));
            }
        }
        for (u32 j = written + lane; j < longest; j += 32) to[j] = -1;
        if (MASS) sum = warp_sum(sum);
        if (lane == 0) {
            counts[list] = written;
            if (MASS) mass[list] = sum;
        }
    }
}
