// e4m3 codes of keys and values, as attention_codes.cu writes them and attention over codes reads them.
//
// Keys and values stand in slots: key block i in slots i * block to (i + 1) * block, where `block` is 16, 32, 64 or
// 128. Slots of a head are a multiple of 128. What is left over of a block repeats its last key, which is seen and
// weighs nothing, since values and ones there are zero; so are those of slots behind all blocks, where lists have
// another block at least.
// - Keys, WIDTH bytes a slot: of every 8 slots, chunks of 16 bytes of slot 0 to 7, chunk 0 first. Byte 4t + i of chunk
//   j is column WIDTH / 4 * t + 4j + i, so that a lane of a quad finds its columns of a query side by side.
// - Values, VALUE_ROWS bytes a slot: of every 16 slots, 16 bytes of each column, behind the last those of eight columns
//   of ones. Bytes 4t to 4t + 3 are slots 2t, 2t + 1, 2t + 8 and 2t + 9, so that sums of scores become an operand where
//   they stand.
//
// Macros: WIDTH.
#pragma once
#include "pairs.cuh"

const u32 VALUE_ROWS = WIDTH + 8;
// Keys that share a scale where there are no lists, and centroids that do.
const u32 DENSE = 128, CENTRAL = 64;
// Octaves from the smallest weight to the largest.
const float SPAN = 15.f;
// No scale is smaller than the smallest normal number.
const float SMALLEST_AMAX = 448.f * 1.17549435e-38f;

// What a centroid adds to its score, an f16 in spans of octaves, and the key block that it lies in.
struct Centroid { u16 bias; u32 block; };

// One of eight neighbours.
DEVICE float bf16_of(const uint4& raw, u32 i) {
    const u32 two = i < 4 ? (i < 2 ? raw.x : raw.y) : (i < 6 ? raw.z : raw.w);
    return __uint_as_float(i % 2 ? two & 0xFFFF0000 : two << 16);
}
DEVICE u32 four_codes(float a, float b, float c, float d) {
    return Pair<e4m3_t>::of(a, b) | Pair<e4m3_t>::of(c, d) << 16;
}
