// How a sequence is cut into blocks: runs that no block crosses, each cut by itself, the last block of a run ragged.
#pragma once
#include "types.cuh"

const int MAX_RUNS = 32;

// `runs` lengths, at least one, the last repeated to the end of the sequence.
struct Cut { i32 tokens, size, runs, lengths[MAX_RUNS]; };

struct Range { i32 begin, end; };

// The tokens of a block, which exists.
DEVICE Range tokens_of(const Cut& cut, i32 block) {
    i32 start = 0;
    for (i32 run = 0;; run++) {
        const i32 length = cut.lengths[run], blocks = (length + cut.size - 1) / cut.size;
        if (run + 1 >= cut.runs) {
            if (blocks == 0) return {start, start};
            const i32 repeat = block / blocks, from = start + repeat * length;
            const i32 begin = from + (block - repeat * blocks) * cut.size;
            return {begin, min(begin + cut.size, from + length)};
        }
        if (block < blocks) return {start + block * cut.size, min(start + (block + 1) * cut.size, start + length)};
        block -= blocks;
        start += length;
    }
}

struct Place { i32 block, run; };

// The block and the run that hold a token.
DEVICE Place place_of(const Cut& cut, i32 token) {
    i32 block = 0;
    for (i32 run = 0;; run++) {
        const i32 length = cut.lengths[run], blocks = (length + cut.size - 1) / cut.size;
        if (run + 1 >= cut.runs) {
            const i32 repeat = length == 0 ? 0 : token / length;
            return {block + repeat * blocks + (token - repeat * length) / cut.size, run + repeat};
        }
        if (token < length) return {block + token / cut.size, run};
        block += blocks;
        token -= length;
    }
}

// The tokens of the run that holds a token.
DEVICE Range run_at(const Cut& cut, i32 token) {
    i32 start = 0;
    for (i32 run = 0;; run++) {
        const i32 length = cut.lengths[run];
        if (run + 1 >= cut.runs) {
            const i32 begin = length == 0 ? start : start + (token - start) / length * length;
            return {begin, begin + length};
        }
        if (token < start + length) return {start, start + length};
        start += length;
    }
}

// The token in a slot of a list of blocks, where every block has as many slots as the longest; -1 behind a shorter one.
DEVICE i32 listed_token(const Cut& cut, const i32* list, u32 slot) {
    const u32 entry = slot / cut.size;
    const Range range = tokens_of(cut, list[entry]);
    const i32 token = range.begin + (slot - entry * cut.size);
    return token < range.end ? token : -1;
}

// Whether a block is among those `taken`, a bit a block; and whether the one that holds a token is.
DEVICE bool is_taken(const u32* taken, u32 block) { return taken[block / 32] >> block % 32 & 1; }
DEVICE bool is_taken(const Cut& cut, const u32* taken, i32 token) { return is_taken(taken, place_of(cut, token).block); }
