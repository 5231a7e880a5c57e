// Queries as e4m3 codes, and weights of keys by straight lines: what attention over codes computes everywhere.
//
// Scores are pairs of f16: codes of queries are at most 112 / WIDTH, so that no score is above 50176. What follows is
// counted in spans of SPAN octaves: z = score * slope, and with the bias b of a row, 1 at its largest z, the weight of
// a key is the e4m3 number with the code 120 * saturate(z + b), rounded to an integer. That is exp2(SPAN * (z + b) -
// 7) at powers of two and straight lines between them. Its errors are 3.1 % (root of the mean square) where those of
// the nearest codes are 2.6 %, and neither special functions nor conversions are needed; DROP makes them zero on
// average.
//
// Lanes are those of mma.cuh's fragments: lane 4g + t has rows g and g + 8.
//
// Macros: WIDTH 64 or 128; KEYS a tile.
#pragma once
#include "activations.cuh"
#include "attention_codes.cuh"
#include "halves.cuh"

// Lanes of a quad hold WIDTH / 4 columns of a query each.
const u32 COLUMNS = WIDTH / 4;
const float LARGEST_QUERY = 112.f / WIDTH;
const float DROP = 0.46f / 120;
// Pairs of f16: the bias of rows that have seen no key, 1, 120 and 1024, whose neighbours are 1 apart.
const u32 UNSEEN = 0x7BFF7BFF, ONES = 0x3C003C00, CODES = 0x57805780, WHOLE = 0x64006400;
// What a centroid has for a bias that does not count: minus infinity.
#define NO_KEY 0xFC00

// Codes of a row of queries, `row` 0 or 1 of the lane's two; gives what a code of 1 stands for.
DEVICE float code_query(u32 (&query)[WIDTH / 32][4], const uint4 (&raw)[COLUMNS / 8], u32 row) {
    float most = 0.f;
    auto x = [&](u32 i) { return bf16_of(raw[i / 8], i % 8); };
#pragma unroll
    for (u32 i = 0; i < COLUMNS; i++) most = fmaxf(most, fabsf(x(i)));
    const float unit = fmaxf(lanes_max<4>(most), SMALLEST_AMAX) * (1.f / LARGEST_QUERY), inverse = 1.f / unit;
#pragma unroll
    for (u32 i = 0; i < COLUMNS; i += 4)
        query[i / 8][i / 4 % 2 * 2 + row] =
            four_codes(x(i) * inverse, x(i + 1) * inverse, x(i + 2) * inverse, x(i + 3) * inverse);
    return unit;
}

// Octaves that centring took from all scores of a row; `scale` in spans.
DEVICE float octaves_lost(const uint4 (&raw)[COLUMNS / 8], const float* centres, float scale) {
    const float* centre = centres + threadIdx.x % 4 * COLUMNS;
    auto x = [&](u32 i) { return bf16_of(raw[i / 8], i % 8); };
    float lost = 0.f;
#pragma unroll
    for (u32 i = 0; i < COLUMNS; i += 4) {
        const float4 c = *(const float4*)(centre + i);
        lost += x(i) * c.x + x(i + 1) * c.y + x(i + 2) * c.z + x(i + 3) * c.w;
    }
    return lanes_sum<4>(lost) * scale * SPAN;
}

// Scores of two rows become 1024 + the codes of their weights under the bias, which is lowered first; `shrink` is what
// sums of before are worth then. Of the keys, SCALES runs of equal length have a scale each; if they are `central`, of
// centroids, also a bias each.
template <u32 SCALES> DEVICE void weigh(
    u32 (&scores)[KEYS / 4], u32& bias, float (&shrink)[2], const float (&slopes)[2], const float* scales,
    const u16* biases, bool central)
{
    // Of row g below, of row g + 8 above.
    u32 slope[SCALES];
#pragma unroll
    for (u32 i = 0; i < SCALES; i++) {
        const float here = scales[i];
        slope[i] = half_pair(slopes[0] * here, slopes[1] * here);
    }
    const u32 each = KEYS / 4 / SCALES;
    // Many slopes leave their registers at once.
    const bool many = SCALES > 2;
    if (central) {
        const u16* bias_of = biases + threadIdx.x % 4 * 2;
#pragma unroll
        for (u32 i = 0; i < KEYS / 4; i += 2) {
            const u32 two = *(const u32*)(bias_of + i * 4);
#pragma unroll
            for (u32 row = 0; row < 2; row++)
                scores[i + row] = half_fma(scores[i + row], half_twice(slope[i / each], row), two);
        }
#pragma unroll
        for (u32 i = 0; i < SCALES; i++) slope[i] = ONES;
    } else if (many) {
#pragma unroll
        for (u32 i = 0; i < KEYS / 4; i++) scores[i] = half_mul(scores[i], half_twice(slope[i / each], i % 2));
    }
    u32 most[2];
#pragma unroll
    for (u32 row = 0; row < 2; row++)
#pragma unroll
        for (u32 i = 0; i < SCALES; i++) {
            u32 here = scores[i * each + row];
#pragma unroll
            for (u32 j = 2; j < each; j += 2) here = half_max(here, scores[i * each + j + row]);
            if (!many) here = half_mul(here, half_twice(slope[i], row));
            most[row] = i ? half_max(most[row], here) : here;
        }
    u32 both = half_max(__byte_perm(most[0], most[1], 0x5410), __byte_perm(most[0], most[1], 0x7632));
    both = half_max(both, __shfl_xor_sync(~0u, both, 1));
    both = half_max(both, __shfl_xor_sync(~0u, both, 2));
    const u32 lower = half_min(bias, half_sub(half_pair(1.f - DROP, 1.f - DROP), both));
    const float2 old_bias = half_widen(bias), new_bias = half_widen(lower);
    shrink[0] = exp2_fast(SPAN * (new_bias.x - old_bias.x));
    shrink[1] = exp2_fast(SPAN * (new_bias.y - old_bias.y));
    bias = lower;
#pragma unroll
    for (u32 i = 0; i < KEYS / 4; i++) {
        const u32 weight = half_fma_saturated(
            scores[i], many ? ONES : half_twice(slope[i / each], i % 2), half_twice(lower, i % 2));
        scores[i] = half_fma(weight, CODES, WHOLE);
    }
}

// What `weigh` has made of scores, as the left operand of products with values.
DEVICE void pack_codes(u32 (&weights)[KEYS / 32][4], const u32 (&scores)[KEYS / 4]) {
#pragma unroll
    for (u32 i = 0; i < KEYS / 8; i++) {
        const u32 from = i / 2 * 4 + i % 2;
        weights[i / 4][i % 4] = __byte_perm(scores[from], scores[from + 2], 0x6420);
    }
}

// The natural logarithm of a row's sum of exponentials, from that of its weights under a bias.
DEVICE float logarithm(float sum, float bias, float lost) {
    return 0.69314718f * (log2f(sum) + 7.f - SPAN * (bias + DROP) + lost);
}
