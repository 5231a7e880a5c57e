// Which key blocks every query block attends to: scores of mean queries and mean keys, the mean of all keys taken off,
// and of the best a list in ascending order. Three launches: means of key blocks, stored [d, blocks] so that threads
// read neighbours; the mean of all keys; lists, a block a list.
//
// The best are found by the bits of their scores from the top, 8 at a time, equal ones by the lower number.
//
// Macros: TX elements of q and k; SUB 1 where the score is the mean over sub-blocks of the softmax of their products;
// TOGETHER sub-blocks that are scored in one pass over the keys; MASS 1 for the third result.
#include "blocks.cuh"

struct Kept { i32 count, always, runs[MAX_RUNS], own; };
const i32 OWN_BLOCK = 1, OWN_RUN = 2;

extern "C" __global__ void __launch_bounds__(128) key_means(
    const TX* __restrict__ k, float* __restrict__ means, const Cut cut, const u32 blocks, const u32 m, const u32 d)
{
    wait_for_launch_before();
    const i64 head = blockIdx.x / blocks;
    const u32 block = blockIdx.x - (u32)head * blocks;
    const Range range = tokens_of(cut, block);
    for (u32 column = threadIdx.x; column < d; column += 128) {
        float sum = 0.f;
        for (i32 token = range.begin; token < range.end; token++) sum += load(k + (head * m + token) * d + column);
        means[(head * d + column) * blocks + block] = sum / (float)(range.end - range.begin);
    }
}

// A warp sums a column of a head: means of blocks by their numbers of tokens.
extern "C" __global__ void __launch_bounds__(256) mean_of_means(
    const float* __restrict__ means, float* __restrict__ mean, const Cut cut, const u32 blocks, const u32 m,
    const i64 columns)
{
    wait_for_launch_before();
    const i64 column = (i64)blockIdx.x * 8 + threadIdx.x / 32;
    if (column >= columns) return;
    float sum = 0.f;
    for (u32 block = threadIdx.x % 32; block < blocks; block += 32) {
        const Range range = tokens_of(cut, block);
        sum = fmaf(means[column * blocks + block], (float)(range.end - range.begin), sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) mean[column] = sum / (float)m;
}

// Over the block; all threads call them.
DEVICE float block_max(float x, float* parts) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = parts[0];
    for (u32 i = 1; i < 8; i++) x = fmaxf(x, parts[i]);
    return x;
}
DEVICE float block_sum(float x, float* parts) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = parts[0];
    for (u32 i = 1; i < 8; i++) x += parts[i];
    return x;
}
// How many threads before this one say yes; `all` is how many do.
DEVICE u32 block_rank(bool yes, u32* parts, u32& all) {
    const u32 votes = __ballot_sync(~0u, yes), warp = threadIdx.x / 32;
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[warp] = __popc(votes);
    __syncthreads();
    u32 before = __popc(votes & ((1u << threadIdx.x % 32) - 1));
    all = 0;
    for (u32 i = 0; i < 8; i++) {
        before += i < warp ? parts[i] : 0;
        all += parts[i];
    }
    return before;
}

// Unsigned numbers in the order of floats.
DEVICE u32 ordered(float x) {
    const u32 bits = __float_as_uint(x);
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

extern "C" __global__ void __launch_bounds__(256) route(
    const TX* __restrict__ q, const float* __restrict__ means, const float* __restrict__ mean, i32* __restrict__ lists,
    i32* __restrict__ counts, float* __restrict__ mass, const Cut query_cut, const Cut key_cut, const Kept kept,
    const u32 query_blocks, const u32 key_blocks, const u32 longest, const u32 n, const u32 d, const u32 sub,
    const float scale)
{
    wait_for_launch_before();
    extern __shared__ float shared[];
    __shared__ float float_parts[8];
    __shared__ u32 parts[8], histogram[256], found[2];
    const u32 rounded = (key_blocks + 255) / 256 * 256;
    float* scores = shared;
    float* products = scores + rounded;
    float* queries = products + (SUB ? TOGETHER * rounded : 0);
    float* middle = queries + TOGETHER * d;
    u32* flags = (u32*)(middle + d);

    const i64 row = blockIdx.x, head = row / query_blocks;
    const Range own = tokens_of(query_cut, (i32)(row - head * query_blocks));
    const i32 own_run = place_of(query_cut, own.begin).run;
    for (u32 i = threadIdx.x; i < d; i += 256) middle[i] = mean[head * d + i];
    for (u32 j = threadIdx.x; j < rounded; j += 256) {
        bool flag = false;
        if (j < key_blocks && (kept.always || kept.own)) {
            const Range range = tokens_of(key_cut, j);
            const i32 run = place_of(key_cut, range.begin).run;
            for (i32 i = 0; i < kept.always; i++) flag |= kept.runs[i] == run;
            flag |= kept.own == OWN_RUN && run == own_run;
            flag |= kept.own == OWN_BLOCK && range.begin < own.end && range.end > own.begin;
        }
        const u32 votes = __ballot_sync(~0u, flag);
        if (threadIdx.x % 32 == 0) flags[j / 32] = votes;
        scores[j] = 0.f;
    }

    const u32 rows = own.end - own.begin, subs = (rows + sub - 1) / sub;
    const float* columns = means + head * d * key_blocks;
    for (u32 first = 0; first < subs; first += TOGETHER) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < TOGETHER * d; i += 256) {
            const u32 part = i / d, column = i - part * d;
            const i32 begin = own.begin + (first + part) * sub, end = min(own.end, begin + (i32)sub);
            float sum = 0.f;
            for (i32 token = begin; token < end; token++) sum += load(q + (head * n + token) * d + column);
            queries[i] = begin < end ? sum / (float)(end - begin) : 0.f;
        }
        __syncthreads();
        for (u32 j = threadIdx.x; j < key_blocks; j += 256) {
            float sums[TOGETHER];
#pragma unroll
            for (u32 part = 0; part < TOGETHER; part++) sums[part] = 0.f;
            for (u32 i = 0; i < d; i++) {
                const float key = columns[(i64)i * key_blocks + j] - middle[i];
#pragma unroll
                for (u32 part = 0; part < TOGETHER; part++) sums[part] = fmaf(queries[part * d + i], key, sums[part]);
            }
#pragma unroll
            for (u32 part = 0; part < TOGETHER; part++)
                (SUB ? products : scores)[part * rounded + j] = scale * sums[part];
        }
#if SUB
        for (u32 part = 0; part < TOGETHER && first + part < subs; part++) {
            float* p = products + part * rounded;
            float most = __uint_as_float(0xff800000), sum = 0.f;
            for (u32 j = threadIdx.x; j < key_blocks; j += 256) most = fmaxf(most, p[j]);
            most = block_max(most, float_parts);
            for (u32 j = threadIdx.x; j < key_blocks; j += 256) sum += p[j] = expf(p[j] - most);
            sum = block_sum(sum, float_parts);
            for (u32 j = threadIdx.x; j < key_blocks; j += 256) scores[j] += p[j] / sum / (float)subs;
        }
#endif
    }
    __syncthreads();

    auto flagged = [&](u32 j) { return (flags[j / 32] >> j % 32 & 1) != 0; };
    u32 fixed = 0, all;
    for (u32 base = 0; base < rounded; base += 256) {
        block_rank(flagged(base + threadIdx.x), parts, all);
        fixed += all;
    }
    // The score of the last block that is taken, and how many blocks of that score are.
    u32 missing = (u32)kept.count > fixed ? kept.count - fixed : 0, threshold = 0, mask = 0;
    const bool choose = missing > 0;
    for (i32 shift = 24; choose && shift >= 0; shift -= 8) {
        __syncthreads();
        histogram[threadIdx.x] = 0;
        __syncthreads();
        for (u32 j = threadIdx.x; j < key_blocks; j += 256) {
            const u32 bits = ordered(scores[j]);
            if (!flagged(j) && (bits & mask) == threshold) atomicAdd(histogram + (bits >> shift & 255), 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u32 bin = 255, left = missing;
            while (bin > 0 && histogram[bin] < left) left -= histogram[bin--];
            found[0] = bin;
            found[1] = left;
        }
        __syncthreads();
        threshold |= found[0] << shift;
        mask |= 255u << shift;
        missing = found[1];
    }

    float most = __uint_as_float(0xff800000), total = 1.f, sum = 0.f;
    if (MASS && !SUB) {
        for (u32 j = threadIdx.x; j < key_blocks; j += 256) most = fmaxf(most, scores[j]);
        most = block_max(most, float_parts);
        for (u32 j = threadIdx.x; j < key_blocks; j += 256) sum += expf(scores[j] - most);
        total = block_sum(sum, float_parts);
        sum = 0.f;
    }
    u32 written = 0, equals = 0;
    for (u32 base = 0; base < rounded; base += 256) {
        const u32 j = base + threadIdx.x;
        const bool there = j < key_blocks, fixed_one = flagged(j);
        const u32 bits = ordered(scores[j]);
        const bool equal = there && choose && !fixed_one && bits == threshold;
        const u32 rank = equals + block_rank(equal, parts, all);
        equals += all;
        const bool take = there && (fixed_one || (choose && bits > threshold) || (equal && rank < missing));
        const u32 at = written + block_rank(take, parts, all);
        written += all;
        if (take) {
            lists[row * longest + at] = j;
            sum += SUB ? scores[j] : expf(scores[j] - most) / total;
        }
    }
    for (u32 i = written + threadIdx.x; i < longest; i += 256) lists[row * longest + i] = -1;
    if (threadIdx.x == 0) counts[row] = written;
    if (MASS) {
        sum = block_sum(sum, float_parts);
        if (threadIdx.x == 0) mass[row] = sum;
    }
}
